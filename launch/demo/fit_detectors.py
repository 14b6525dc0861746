"""Fit the detectors of `launch.demo.evaluate` to rendered phantoms.

    python -m launch.demo.fit_detectors --workdir out/detectors

Renders cases that neither training nor evaluation uses, each with two lists of findings, measures
every rendering and a smoothed copy of it (a model's volume is smoother than a rendering), fits the
weights and writes data_pipelines/phantom/detectors.npz. Prints how well they read as many further
cases as `--held-out` says. Measurements are kept in WORKDIR, so that an interrupted run continues;
they take half an hour on two cores. Needs `pip install -e '.[evaluate]'`.
"""

import argparse
import sys
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from data_pipelines.phantom.case import (
    Description,
    case_from_findings,
    counterfactual_description,
    sample_description,
)
from data_pipelines.phantom.chest_measurements import Measurements, measure
from data_pipelines.phantom.chest_regions import PIXEL_MM, SLICE_MM, read_chest
from data_pipelines.phantom.detector_fit import fit, labels_of_all
from data_pipelines.phantom.detectors import SHIPPED, Weights, detection, read
from data_pipelines.phantom.findings import FINDINGS
from data_pipelines.phantom.render import render
from gct_jax.errors import InputError
from gct_jax.evaluation.auroc import auroc
from gct_jax.runtime.exit_codes import exit_code
from gct_jax.runtime.files import replace_when_done
from gct_jax.runtime.numerics import prepare_jax
from gct_jax.volumes.grid import Grid
from launch.demo.measures import side_rows
from launch.markdown import markdown_table

FIRST_SEED = 1_500_000_000
GRID = Grid.centred((33, 64, 64), (SLICE_MM, PIXEL_MM, PIXEL_MM))
SMOOTHING = (0.4, 0.7, 0.7)  # standard deviation in voxels
SHARD = 64
ROWS = 4  # of a case: rendered, smoothed; the same with other findings


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="launch.demo.fit_detectors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=4096, help="to fit, twice each (4096)")
    parser.add_argument("--held-out", type=int, default=256, help="to read afterwards (256)")
    parser.add_argument("--workdir", type=Path, default=Path("out/detectors"))
    parser.add_argument("--out", type=Path, default=SHIPPED, help="weights (those in use)")
    parser.add_argument("--processes", type=int, default=2, help="that measure (2)")
    options = parser.parse_args(arguments)
    if options.cases < 2 or options.held_out < 1 or options.processes < 1:
        parser.error("--cases must be at least 2, --held-out and --processes at least 1")

    def command() -> None:
        prepare_jax("launch.demo.fit_detectors")
        print(fit_and_read(options))

    return exit_code("launch.demo.fit_detectors", command)


def fit_and_read(options: argparse.Namespace) -> str:
    """Everything; returns a Markdown table after writing the weights."""
    cases = options.cases + options.held_out
    measured = measure_cases(cases, options.workdir, options.processes)
    described = describe(cases)
    first = ROWS * options.cases
    weights = fit(Measurements(*(part[:first] for part in measured)), described[:first])
    with replace_when_done(options.out) as path:
        np.savez_compressed(path, allow_pickle=False, **weights._asdict())
    return read_table(
        weights, Measurements(*(part[first:] for part in measured)), described[first:]
    )


def describe(cases: int) -> list[Description]:
    """What is wrong with each row of `measure_cases`."""
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + cases):
        first, second = sample_description(seed), counterfactual_description(seed)
        rows += [first, first, second, second]
    return rows


def measure_cases(cases: int, folder: Path, processes: int) -> Measurements:
    """Measurements [ROWS * cases, ...] of cases from `FIRST_SEED`, kept in `folder`.

    Raises:
      InputError: the folder cannot be written to, or holds what this version would not write.
    """
    shards = []
    # Forked processes would inherit JAX's threads
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        for first in tqdm(range(0, cases, SHARD), "measuring", unit=f"{SHARD} cases"):
            count = min(SHARD, cases - first)
            path = folder / f"measured_{first:06d}_{count}.npz"
            if not path.exists():
                volumes = [volume for n in range(count) for volume in _volumes(first + n)]
                rows = list(pool.map(_measure, volumes, chunksize=8))
                stacked = Measurements(*map(np.stack, zip(*rows, strict=True)))
                with replace_when_done(path) as target:
                    np.savez(target, allow_pickle=False, **stacked._asdict())
            elif not first:
                _require_same(path)
            shards.append(_load(path))
    return Measurements(*map(np.concatenate, zip(*shards, strict=True)))


def _load(path: Path) -> Measurements:
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return Measurements(**{name: arrays[name] for name in Measurements._fields})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged; delete it, it will be made again") from error


def _require_same(path: Path) -> None:
    """The first row measured anew must be the one on disk."""
    made = _measure(_volumes(0)[0])
    for stored, now in zip(_load(path), made, strict=True):
        if stored.shape[1:] != now.shape or not np.allclose(stored[0], now, rtol=0.05, atol=2):
            raise InputError(f"{path} is of another version; choose another --workdir")


def _volumes(number: int) -> list[np.ndarray]:
    seed = FIRST_SEED + number
    rows = []
    for description in (sample_description(seed), counterfactual_description(seed)):
        rendered = np.asarray(render(case_from_findings(seed, *description).anatomy, GRID))
        volume = np.clip(rendered, -1000, 1000).astype(np.float32)
        rows += [volume, ndimage.gaussian_filter(volume, SMOOTHING)]
    return rows


def _measure(volume_hu: np.ndarray) -> Measurements:
    return measure(read_chest(volume_hu, (SLICE_MM, PIXEL_MM, PIXEL_MM)))


def read_table(weights: Weights, measured: Measurements, described: list[Description]) -> str:
    """Markdown: AUROC and right sides of the rendered and of the smoothed rows."""
    scores, differences = read(weights, measured)
    labels = labels_of_all(described)
    found = [detection(*row) for row in zip(scores, differences, strict=True)]
    sources = {"rendered": found[0::2], "smoothed": found[1::2]}
    sides = {row["finding"]: row for row in side_rows(described[0::2], sources)}
    rows = []
    for number, name in enumerate(FINDINGS):
        row = [name, *(f"{auroc(labels[k::2, number], scores[k::2, number]):.2f}" for k in (0, 1))]
        told = sides.get(name, {"asked": 0})
        row += [f"{told[source]} of {told['asked']}" if told["asked"] else "" for source in sources]
        rows.append(row)
    return markdown_table([["finding", "AUROC", "smoothed", "side", "smoothed"], *rows])


if __name__ == "__main__":
    sys.exit(main())
