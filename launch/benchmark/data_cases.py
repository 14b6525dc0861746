"""What `launch.benchmark.data` times, a function for each row."""

import csv
import importlib.util
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.loader import AHEAD

SLICES = (200, 266, 333, 400)
BATCH = 4
COPIES = 24  # of each volume, so that an epoch is longer than what is read ahead
TOKENS = 2048  # records
CODES = 8192


def make_tree(root: Path, files: int) -> None:
    """CT-RATE's layout with metadata beside the volumes, as the reference reads it too."""
    from gct_jax.volumes.nifti import write_placed_volume

    rows = []
    for number in range(files):
        slices = SLICES[number % len(SLICES)]
        volume, affine = synthetic_ct(slices, number)
        name = f"train_{number}_a_1"
        folder = root / "ct_rate/dataset/train_fixed" / f"train_{number}" / f"train_{number}_a"
        write_placed_volume(folder / f"{name}.nii.gz", volume, affine)
        fields = {"RescaleSlope": "1", "RescaleIntercept": "0", "PatientAge": "060Y"}
        (folder / f"{name}_metadata.json").write_text(json.dumps(fields))
        rows.append((f"{name}.nii.gz", "Lungs are clear.", "Normal chest."))
    reports = root / "ct_rate/dataset/radiology_text_reports/train_reports.csv"
    reports.parent.mkdir(parents=True)
    with reports.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("VolumeName", "Findings_EN", "Impressions_EN"))
        writer.writerows(rows)


def synthetic_ct(slices: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy chest of 512 x 512 pixels of 0.7 mm, 320 mm long, and its affine."""
    from gct_jax.volumes.grid import centred_affine

    shape, spacing = (slices, 512, 512), (320 / slices, 0.7, 0.7)
    z, y, x = ((np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True))
    z, y, x = z[:, None, None], y[None, :, None], x[None, None]
    volume = np.full(shape, -1000, np.float32)
    volume[np.broadcast_to((x / 165) ** 2 + (y / 120) ** 2 < 1, shape)] = 40
    for side in (-75, 75):
        volume[((x - side) / 55) ** 2 + (y / 85) ** 2 + (z / 130) ** 2 < 1] = -860
    rng = np.random.default_rng(seed)
    for image in volume:
        image += rng.normal(0, 18, image.shape).astype(np.float32)
    return volume, centred_affine(shape, spacing)


def base_grid() -> Any:
    """That of configs/base.py."""
    from launch.grids import parse_grid

    return parse_grid("base")[0]


def prepare(root: Path, ct: str | None) -> dict:
    """Seconds, MB read and MB written of a case."""
    from data_pipelines.cases import Case, ListedSource, Listing
    from data_pipelines.prepared_case import Prepared, prepare_case
    from data_pipelines.source import open_source
    from gct_jax.training.config import DataConfig

    if ct is None:
        source: Any = open_source(DataConfig(source="ct_rate", root=str(root / "ct_rate")))
    else:
        one = Case(Path(ct).name, (Path(ct),), "p", "s", "training")
        source = ListedSource(Listing((one,), (), {}))
    seconds, read, written = [], [], []
    for case in range(source.cases):
        start = time.perf_counter()
        result = prepare_case(source, "benchmark", case, base_grid())
        seconds.append(time.perf_counter() - start)
        assert isinstance(result, Prepared), result
        read.append(sum(file.stat().st_size for file in source.case(case).files))
        written.append(len(result.packed))
    return {
        "name": source.case(0).name,
        "seconds": statistics.mean(seconds),
        "read_mb": statistics.mean(read) / 1e6,
        "mb": statistics.mean(written) / 1e6,
    }


def make_shards(root: Path) -> None:
    """The same records as shards and, if Grain is there, as ArrayRecord: `COPIES` of each volume,
    and random tokens."""
    from data_pipelines.features import serialize, token_features

    rng = np.random.default_rng(0)
    tokens = []
    for number in range(TOKENS):
        ids = rng.integers(0, CODES, (101, 8, 8), dtype=np.uint16)
        example = {"ids": ids, "report": "Normal.", "case": str(number), "patient": str(number)}
        tokens.append((serialize(token_features(0, CODES), example), {"slices": 101}))
    volumes = _volume_records(root, base_grid(), COPIES)
    for kind, contents in (("volumes", volumes), ("tokens", tokens)):
        _one_shard(root / kind, kind, contents)
        if importlib.util.find_spec("array_record"):
            from array_record.python.array_record_module import ArrayRecordWriter

            writer = ArrayRecordWriter(str(root / f"{kind}.array_record"), "group_size:1")
            for content, _ in contents:
                writer.write(content)
            writer.close()


def _volume_records(root: Path, grid: Any, copies: int) -> list[tuple[bytes, dict]]:
    """The tree's CTs on a grid, each `copies` times, as a shard takes them."""
    from data_pipelines.features import serialize, volume_features
    from data_pipelines.prepared_case import Prepared, prepare_case
    from data_pipelines.source import open_source
    from gct_jax.training.config import DataConfig

    source = open_source(DataConfig(source="ct_rate", root=str(root / "ct_rate")))
    records: list[tuple[bytes, dict]] = []
    for case in range(source.cases):
        result = prepare_case(source, "benchmark", case, grid)
        assert isinstance(result, Prepared), result
        example = {"volume": (result.packed, result.shape), **result.record}
        records += [(serialize(volume_features(), example), {"slices": result.shape[0]})] * copies
    return records


def _one_shard(folder: Path, kind: str, contents: list[tuple[bytes, dict]]) -> None:
    from data_pipelines.ledger import Ledger, plan_shards

    (shard,) = plan_shards({"train": range(len(contents))}, len(contents))
    ledger = Ledger(folder, {"kind": kind, "per_shard": len(contents)}, [shard])
    ledger.write(shard, iter(contents))
    ledger.write_manifest()


def stream_shards(root: Path, kind: str, items: int) -> dict:
    """Our loader."""
    return _timed(_loader(root / kind, kind), items, BATCH)


def _loader(folder: Path, kind: str, batch: int = BATCH) -> Iterator[Any]:
    from data_pipelines.batch_plan import BatchPlan
    from data_pipelines.loader import stream, token_view, volume_view
    from data_pipelines.shard_reader import RecordReader, ShardFolder

    records = ShardFolder(str(folder)).split("train")
    view = volume_view(False) if kind == "volumes" else token_view(0, CODES, 0, False, False)
    hold = int(2e9) if kind == "tokens" else 0
    plan = BatchPlan([records.depths], (), batch, 0)
    return stream([RecordReader(records, hold)], view, plan.rows, batch)


def stream_grain(root: Path, kind: str, items: int) -> dict | None:
    """Grain over ArrayRecord, the same work for each item."""
    if not (importlib.util.find_spec("grain") and importlib.util.find_spec("array_record")):
        return None
    import grain
    import zstandard
    from tensorflow.core.example.example_pb2 import Example

    from gct_jax.volumes.intensity import to_unit

    def volume(content: bytes) -> Any:
        fields = Example.FromString(content).features.feature
        packed = fields["volume/packed"].bytes_list.value[0]
        shape = list(fields["volume/shape"].int64_list.value)
        return to_unit(np.frombuffer(zstandard.decompress(packed), "<i2").reshape(shape))[..., None]

    def tokens(content: bytes) -> Any:
        packed = Example.FromString(content).features.feature["ids/value"].bytes_list.value[0]
        return np.frombuffer(packed, "<u2").reshape(101, 8, 8).astype(np.int32)

    source = grain.sources.ArrayRecordDataSource([str(root / f"{kind}.array_record")])
    dataset = grain.MapDataset.source(source).seed(0).shuffle().repeat()
    dataset = dataset.map(volume if kind == "volumes" else tokens)
    # As many threads and items ahead as the loader has; its defaults read 500 ahead.
    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD)
    return _timed(iter(dataset.batch(BATCH).to_iter_dataset(options)), items, BATCH)


def stream_reference(root: Path, kind: str, items: int) -> dict:
    """Read and resize the whole file for every item, as GenerateCT's datasets do; for MaskGIT they
    do the same, and CT-ViT encodes the result, which is not counted here."""
    del kind
    from data_pipelines.generatect.volumes import load_ctvit_volume, read_metadata

    paths = sorted((root / "ct_rate").rglob("*.nii.gz"))

    def read() -> Iterator[Any]:
        while True:
            for path in paths:
                yield load_ctvit_volume(path, read_metadata(path))

    return _timed(read(), items, 1)


def _timed(batches: Iterator[Any], items: int, batch: int) -> dict:
    """Items a second, CPU time of an item and peak memory; what is read before the first counts."""
    import psutil

    process, peak = psutil.Process(), 0
    next(batches)
    before, start = process.cpu_times(), time.perf_counter()
    for _ in range(items // batch):
        next(batches)
        peak = max(peak, process.memory_info().rss)
    seconds, after = time.perf_counter() - start, process.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    count = items // batch * batch
    return {"per_second": count / seconds, "cpu_ms": 1000 * cpu / count, "peak_mb": peak / 1e6}


def demo_shards(root: Path) -> Path:
    """Volumes of configs/demo.py's grid."""
    from launch.grids import parse_grid

    folder = root / "demo"
    if not folder.exists():
        _one_shard(folder, "volumes", _volume_records(root, parse_grid("demo")[0], 64))
    return folder


def training_step(root: Path) -> dict:
    """Seconds of a CT-ViT step of configs/demo.py on one batch and on streamed ones, by turns."""
    import jax

    from configs.demo import ctvit
    from gct_jax.config import override
    from gct_jax.random_keys import random_key
    from gct_jax.sharding import make_mesh, shard_batch, state_shardings
    from gct_jax.training.loop import jitted_train_step
    from gct_jax.training.stages import make_stage

    config = override(ctvit(), ["ctvit.counterfactual_pairs=False"])
    stage, mesh = make_stage(config), make_mesh((1, 1, 1))
    rows = config.loop.batch_size
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(stage.init_state, random_key(0), {})
        step = jitted_train_step(stage, state_shardings(abstract, mesh), mesh)
        state = jax.jit(stage.init_state)(random_key(0), {})
        batches = _loader(demo_shards(root), "volumes", rows)
        fixed = next(batches)
        state, _ = step(state, shard_batch(fixed, mesh, rows), None)
        seconds: dict[str, list[float]] = {"fixed": [], "streamed": [], "waiting": []}
        for turn in range(6):
            kind = "fixed" if turn % 2 else "streamed"
            for _ in range(8):
                start = time.perf_counter()
                batch = fixed if kind == "fixed" else next(batches)
                waited = time.perf_counter() - start
                state, metrics = step(state, shard_batch(batch, mesh, rows), None)
                jax.block_until_ready(metrics)
                seconds[kind].append(time.perf_counter() - start)
                if kind == "streamed":
                    seconds["waiting"].append(waited)
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory(root: Path, items: int) -> dict:
    """Resident MB after a tenth of the items and after all."""
    import psutil

    process, batches = psutil.Process(), _loader(demo_shards(root), "volumes")
    sizes = []
    for i in range(items // BATCH):
        next(batches)
        if i in (items // BATCH // 10, items // BATCH - 1):
            sizes.append(process.memory_info().rss / 1e6)
    return {"early_mb": sizes[0], "late_mb": sizes[1]}
