"""`launch.prepare --source`: CTs and their reports into shards."""

import argparse

from gct_jax.errors import ConfigError, GctError
from gct_jax.notes import tell


def run(options: argparse.Namespace) -> None:
    """Prepare this machine's share, and the report when all is there.

    Raises:
      GctError: something was refused; with --strict also if a case was rejected.
    """
    from data_pipelines.volume_shards import ALL_CASES, Outcome, prepare
    from gct_jax.training.config import DataConfig
    from launch.grids import parse_grid

    grid, sentence = parse_grid(options.grid)
    print(f"grid: {sentence}")
    depths = parse_depths(options.depths, grid.shape[0])
    # A folder finds a number itself, see `data_pipelines.folder.list_folder`.
    held_out = options.held_out or (0 if options.source == "folder" else 16)
    data = DataConfig(
        cases=max(2, options.cases or ALL_CASES),
        held_out=held_out,
        source=options.source,
        root=options.root,
        reports=options.reports,
        exclude=tuple(options.exclude),
        text=options.text,
        one_per_scan=options.one_per_scan,
    )
    outcome: Outcome = prepare(
        options.out,
        data,
        grid,
        depths=depths,
        workers=options.workers,
        share=(options.shard, options.shards),
        cases_per_shard=options.cases_per_shard,
        show_names=options.names,
    )
    summary = outcome.summary
    if summary is None:
        print(
            f"{options.out}: {outcome.missing} shards are missing; the report is written by the "
            "machine that finishes last, or by the same command run again"
        )
        return
    counts = ", ".join(f"{split['cases']} {name}" for name, split in summary.splits.items())
    print(
        f"{options.out}: {counts}, {len(summary.rejected)} rejected; {options.out}/report.html; "
        f"data.source=shards data.folder={options.out}"
    )
    for name, split in summary.splits.items():
        if not split["cases"]:
            tell(f"no case is left for {name}; state another --held-out or a column 'split'")
    if options.strict and summary.rejected:
        raise GctError(
            f"{len(summary.rejected)} rejected, see {options.out}/report.html; without --strict "
            "that is no error"
        )


def parse_depths(text: str, most: int) -> tuple[int, ...]:
    """ "101,151,201" -> numbers of slices, the largest that of the grid.

    Raises:
      ConfigError: other text, or the largest is not the grid's.
    """
    if not text:
        return ()
    try:
        depths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ConfigError(f"--depths {text} is not of the form 101,151,201") from None
    if depths[0] < 1 or depths[-1] != most:
        raise ConfigError(f"--depths {text}: the largest must be the grid's {most}, all above 0")
    return depths
