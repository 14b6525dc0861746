"""Prepared volumes as a dataset of TensorFlow Datasets.

    import tensorflow_datasets as tfds
    from data_pipelines.tfds_volumes import GctVolumes

    tfds.load("gct_volumes", data_dir="shards/mine", split="train")     # what launch.prepare made

    builder = GctVolumes(data_dir="shards/mine", source="folder", root="my_cts",
                         reports="reports.csv", shape=(33, 64, 64), spacing_mm=(9, 5.625, 5.625))
    builder.download_and_prepare()                                      # makes the same

The files of the dataset are hard links to the shards, or copies where a disk has no links.
"""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from data_pipelines.features import volume_features
from data_pipelines.ledger import DATASET, Ledger
from gct_jax.training.config import DataConfig
from gct_jax.volumes.grid import Grid, Shape, Spacing


class GctVolumes(FileReaderBuilder):
    """Volumes on one grid with reports and labels, see `data_pipelines.features`.

    Args:
      options: of the preparation, see `prepare_as_told`; without them what exists is read.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir: Any = None, **options: Any):
        own = {name: options.pop(name) for name in ("config", "version") if name in options}
        self._options, self._folder = options, data_dir
        super().__init__(data_dir=data_dir, **own)

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Chest CT volumes on one grid, with reports and labels.",
            features=volume_features(),
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        del dl_manager, download_config
        from data_pipelines.volume_shards import open_preparation

        if self._options:
            prepare_as_told(Path(self._folder), **self._options)
        _link(self, open_preparation(Path(self._folder)))


def prepare_as_told(
    folder: Path,
    /,
    *,
    shape: Shape,
    spacing_mm: Spacing,
    workers: int = 1,
    cases_per_shard: int | None = None,
    **data: Any,
) -> None:
    """`volume_shards.prepare` without the dataset's files.

    data: fields of `DataConfig`.

    Raises:
      ConfigError: machines that share the work are still at it, or what `prepare` says.
    """
    from data_pipelines.volume_shards import ALL_CASES, prepare

    options = {"cases": ALL_CASES, **data}
    grid = Grid.centred(shape, spacing_mm)
    prepare(
        folder,
        DataConfig(**options),
        grid,
        workers=workers,
        cases_per_shard=cases_per_shard,
        dataset=False,
    )


def _link(builder: GctVolumes, ledger: Ledger) -> None:
    """Put the shards into TFDS's folder under its names, and tell it their sizes."""
    splits = []
    for name in dict.fromkeys(shard.split for shard in ledger.shards):
        shards = [shard for shard in ledger.shards if shard.split == name]
        infos = ledger.infos(name)
        template = builder._get_filename_template(name)
        for shard in shards:
            source = ledger.shard_folder / f"{shard.name}.tfrecord"
            target = template.sharded_filepath(shard_index=shard.number, num_shards=len(shards))
            try:
                os.link(source, target)
            except OSError:
                shutil.copyfile(source, target)
        splits.append(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[info.records for info in infos],
                num_bytes=sum(info.bytes for info in infos),
                filename_template=template,
            )
        )
    builder.info.set_splits(tfds.core.SplitDict(splits))


def write_dataset(folder: Path) -> None:
    """The dataset's files over what was prepared in `folder`; an older one is replaced."""
    shutil.rmtree(folder / DATASET, ignore_errors=True)  # first: a builder reads what it finds
    builder = GctVolumes(data_dir=folder)
    # TFDS insists on a folder for downloads, and tells of downloading.
    with tempfile.TemporaryDirectory() as nothing, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=nothing)
