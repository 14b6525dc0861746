"""What a report says, as class numbers: the targets for training a text encoder on reports.

For each of the 18 findings three attributes, then age and sex; -1 where the report is silent:

    state  0 not affirmed, 1 on the right, 2 on the left, 3 on both sides, 4 without a side
    place  index in PLACE_NAMES
    size   index in SIZES
    age    decades from 20, sex 0 male, 1 female
"""

import numpy as np

from data_pipelines.phantom.findings import DEVICES, FINDINGS, LOBES, SIZES
from data_pipelines.phantom.report_parser import parse_report
from data_pipelines.phantom.report_phrases import STATIONS

PLACE_NAMES = (*LOBES, *STATIONS, *DEVICES)
STATE = {"right": 1, "left": 2, "bilateral": 3, None: 4}
ATTRIBUTES = 3 * len(FINDINGS) + 2
CLASSES = len(PLACE_NAMES)


def report_attributes(text: str) -> np.ndarray:
    """int32 [ATTRIBUTES] of one report."""
    report = parse_report(text)
    table = np.full((len(FINDINGS), 3), -1, np.int32)
    table[:, 0] = 0
    for finding in report.findings:
        table[FINDINGS.index(finding.name)] = (
            STATE[finding.side],
            PLACE_NAMES.index(finding.place) if finding.place else -1,
            SIZES.index(finding.size) if finding.size else -1,
        )
    decade = -1 if report.age is None else min(max(report.age // 10 - 2, 0), CLASSES - 1)
    sex = -1 if report.sex is None else ("male", "female").index(report.sex)
    return np.array([*table.ravel(), decade, sex], np.int32)
