"""Volumes prepared into shards and read back: whole, in any pieces, after any accident."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from broken_cts import REJECTED, make
from chest_ct import chest, save

tensorflow = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_datasets")

from data_pipelines import ledger, volume_shards  # noqa: E402
from data_pipelines.batch_plan import BatchPlan, Row  # noqa: E402
from data_pipelines.cases import pseudonym  # noqa: E402
from data_pipelines.folder import FolderSource  # noqa: E402
from data_pipelines.loader import stream, volume_view  # noqa: E402
from data_pipelines.preparation import listing_identity  # noqa: E402
from data_pipelines.shard_reader import RecordReader, ShardFolder  # noqa: E402
from gct_jax.errors import ConfigError, GctError, InputError  # noqa: E402
from gct_jax.training.config import DataConfig  # noqa: E402
from gct_jax.volumes.grid import Grid  # noqa: E402
from gct_jax.volumes.intensity import to_unit  # noqa: E402

GRID = Grid.centred((9, 16, 16), (32.0, 24.0, 24.0))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cts(tmp_path_factory):
    """18 CTs of 18 patients and their table."""
    root = tmp_path_factory.mktemp("cts")
    lines = ["path,report,patient,age"]
    for i in range(18):
        shape = (40, 64, 64) if i % 3 else (28, 64, 64)
        save(root / f"smith_{i:02d}.nii.gz", chest(shape, seed=i))
        lines.append(f"smith_{i:02d}.nii.gz,Report of Mr. Smith {i}.,mr_smith_{i},{30 + i}")
    (root / "reports.csv").write_text("\n".join(lines) + "\n")
    return root


def data(root, **options):
    return DataConfig(
        source="folder",
        root=str(root),
        reports=str(root / "reports.csv"),
        held_out=5,
        cases=10**9,
        **options,
    )


@pytest.fixture(scope="module")
def prepared(cts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "mine"
    volume_shards.prepare(folder, data(cts), GRID, cases_per_shard=4)
    return folder


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_records_are_what_the_source_gives(cts, prepared):
    import tensorflow_datasets as tfds

    source = FolderSource(data(cts))
    key = listing_identity(source).key
    number = {pseudonym(source.case(i).name, key): i for i in range(source.cases)}
    assert not {pseudonym(source.case(i).name) for i in range(source.cases)} & set(number)
    seen = set()
    for split, expected in (("train", "training"), ("validation", "held_out")):
        for example in tfds.load("gct_volumes", data_dir=str(prepared), split=split):
            case = number[example["case"].numpy().decode()]
            seen.add(case)
            np.testing.assert_array_equal(example["volume"].numpy(), source.volume_hu(case, GRID))
            assert example["report"].numpy().decode() == source.case(case).report
            assert source.split(case) == expected
            assert example["age_years"].numpy() == 30 + case
    assert len(seen) == 18


def test_any_number_of_processes_and_machines_makes_the_same_bytes(cts, prepared, tmp_path):
    several = tmp_path / "several"
    for index in (2, 0, 1):
        outcome = volume_shards.prepare(
            several, data(cts), GRID, cases_per_shard=4, share=(index, 3), workers=1 + index % 2
        )
        assert (outcome.missing == 0) is (index == 1)
    assert contents(several) == contents(prepared)


def test_the_builder_makes_the_same(cts, prepared, tmp_path):
    from data_pipelines.tfds_volumes import GctVolumes

    options = {"cases_per_shard": 4, **vars(data(cts))}
    builder = GctVolumes(
        data_dir=tmp_path / "b", shape=GRID.shape, spacing_mm=GRID.spacing_mm, **options
    )
    builder.download_and_prepare(download_dir=tmp_path / "none")
    made = contents(tmp_path / "b" / "gct_volumes")
    assert made == contents(prepared / "gct_volumes")


@pytest.mark.long
def test_killed_at_random_it_ends_with_the_same_bytes(cts, prepared, tmp_path):
    command = [
        *(sys.executable, "-m", "launch.prepare", "--source", "folder", "--root", str(cts)),
        *("--reports", str(cts / "reports.csv"), "--grid", "9x16x16@32x24x24"),
        *("--cases-per-shard", "4", "--held-out", "5", "--workers", "1"),
        *("--out", str(tmp_path / "out")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shards = tmp_path / "out" / "shards"
    for count in range(1, 4):  # kills while the first, the second, the third shard is written
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 120
        while time.monotonic() < limit and process.poll() is None:
            if len(list(shards.glob("*.tfrecord"))) >= count:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = {p.name: p.stat().st_mtime_ns for p in shards.glob("[!.]*.tfrecord")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert whole.items() <= {p.name: p.stat().st_mtime_ns for p in shards.iterdir()}.items()
    assert contents(tmp_path / "out") == contents(prepared)


def test_another_list_or_grid_is_refused(cts, prepared):
    with pytest.raises(ConfigError, match=r"data\.held_out = 5, not 6"):
        options = {**vars(data(cts)), "held_out": 6}
        volume_shards.prepare(prepared, DataConfig(**options), GRID, cases_per_shard=4)
    with pytest.raises(ConfigError, match="shape"):
        other = Grid.centred((5, 16, 16), (32.0, 24.0, 24.0))
        volume_shards.prepare(prepared, data(cts), other, cases_per_shard=4)


def test_a_shard_that_another_finished_meanwhile_shifts_nothing(tmp_path):
    """Between looking what is missing and writing it, another process may have been there."""
    shards = ledger.plan_shards({"train": range(6)}, 2)
    written = ledger.Ledger(tmp_path / "out", {"kind": "test"}, shards)
    other = ledger.Ledger(tmp_path / "out", {"kind": "test"}, shards)
    missing = written.missing()

    def entries(case):
        yield bytes([case]) * 9, {"case": case, "slices": 1}

    other.write_all(shards[:1], iter([0, 1]), entries)
    written.write_all(missing, iter(range(6)), entries)
    found = [facts["case"] for info in written.infos("train") for facts in info.facts]
    assert found == list(range(6))


def test_two_writers_of_a_shard_are_refused(cts, tmp_path):
    from gct_jax.runtime.lock import locked

    with locked(tmp_path / "out" / "locks" / "train-00000"), pytest.raises(GctError):
        volume_shards.prepare(tmp_path / "out", data(cts), GRID, cases_per_shard=4)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    root = tmp_path_factory.mktemp("broken") / "cts"
    root.mkdir()
    table = make(root)
    folder = root.parent / "shards"
    config = DataConfig(source="folder", root=str(root), reports=str(table), held_out=3, cases=999)
    volume_shards.prepare(folder, config, GRID)
    return folder


def test_the_report_names_no_one_and_escapes_everything(broken):
    page = (broken / "report.html").read_text()
    values = json.loads((broken / "report.json").read_text())
    assert len(values["rejected"]) >= len(REJECTED)
    for text in (page, json.dumps(values)):
        assert "Normal chest" not in text and "<script>" not in text
        for name in ("good.nii", "truncated", "Ergu", "hostname"):
            assert name not in text, name
    cases = sum(split["cases"] for split in values["splits"].values())
    assert 0 < page.count("<figure>") <= cases
    for reason in set(REJECTED.values()) - {"not in the table"}:
        assert reason.replace("'", "&#x27;") in page, reason


def test_the_same_voxels_are_never_on_both_sides(broken):
    values = json.loads((broken / "report.json").read_text())
    root = broken.parent / "cts"
    config = DataConfig(root=str(root), reports=str(root.parent / "reports.csv"), held_out=3)
    key = listing_identity(FolderSource(config)).key
    pair = {pseudonym(name, key) for name in ("good.nii.gz", "copy.nii.gz")}
    assert any(pair <= set(group) for group in values["same_voxels"])
    left = {case["case"]: case["split"] for case in values["cases"]}
    for group in values["same_voxels"]:
        assert len({left[name] for name in group if name in left}) == 1


def test_preparing_again_changes_nothing(broken):
    before = contents(broken)
    root = broken.parent / "cts"
    config = DataConfig(
        source="folder",
        root=str(root),
        reports=str(root.parent / "reports.csv"),
        held_out=3,
        cases=999,
    )
    volume_shards.prepare(broken, config, GRID)
    assert contents(broken) == before


def test_names_are_shown_when_asked_for(cts, prepared, tmp_path):
    shown = tmp_path / "shown"
    volume_shards.prepare(shown, data(cts), GRID, cases_per_shard=4, show_names=True)
    assert "smith_03.nii.gz" in (shown / "report.html").read_text()
    assert "smith_03.nii.gz" not in (prepared / "report.html").read_text()
    assert "Report of" not in (shown / "report.html").read_text()
    for name, content in contents(prepared).items():
        if name.startswith("shards"):
            assert b"smith_" not in content


# --- The loader


def reader(folder, **options):
    records = ShardFolder(str(folder)).split("train")
    return records, RecordReader(records, **options)


@pytest.mark.parametrize("hold", [0, 10**9], ids=["disk", "memory"])
def test_the_stream_is_the_plan(prepared, hold):
    records, read = reader(prepared, hold_bytes=hold)
    plan = BatchPlan([records.depths], (), 4, seed=2)
    batches = stream([read], volume_view(False), plan.rows, 4, start=1)
    view = volume_view(False)
    for step in (1, 2, 3, 4):
        batch = next(batches)["volume"]
        assert batch.dtype == np.float32 and batch.shape == (4, *GRID.shape, 1)
        for row, chosen in zip(batch, plan.rows(step), strict=True):
            alone = view.row(read(chosen.case), 9)["volume"].numpy()
            np.testing.assert_array_equal(row[..., 0], to_unit(alone))
    hu = np.int16([[[-1500, -1000, -3, 7, 1000, 3000]]])
    made = view.batch({"volume": tensorflow.constant(hu)})["volume"]
    np.testing.assert_array_equal(made[..., 0], to_unit(hu))


def test_a_later_start_and_several_hosts_give_the_same_batches(prepared):
    records, read = reader(prepared)
    plan = BatchPlan([records.depths], (), 4, seed=2)

    def collect(start, own=range(4), count=3):
        def rows_of(step):
            return [plan.rows(step)[number] for number in own]

        batches = stream([read], volume_view(False), rows_of, len(own), start)
        return [next(batches)["volume"] for _ in range(count)]

    whole = collect(0, count=6)
    np.testing.assert_array_equal(collect(3), whole[3:])
    shares = [collect(0, own, 6) for own in ([0, 3], [1, 2])]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(shares[0][step], batch[[0, 3]])
        np.testing.assert_array_equal(shares[1][step], batch[[1, 2]])


def test_depths_are_padded_and_masked(cts, tmp_path):
    folder = tmp_path / "depths"
    grid = Grid.centred((9, 16, 16), (32.0, 24.0, 24.0))
    volume_shards.prepare(folder, data(cts), grid, depths=(7, 9))
    records, read = reader(folder)
    assert set(records.depths) == {7, 9}
    plan = BatchPlan([records.depths], (), 2, seed=0)
    batches = stream([read], volume_view(True), plan.rows, 2)
    shapes = set()
    for _ in range(12):
        batch = next(batches)
        shapes.add(batch["volume"].shape[1])
        real = batch["slice_mask"].sum(1)
        for volume, count in zip(batch["volume"], real, strict=True):
            assert (volume[count:] == -1).all() and volume[:count].std() > 0.1
    assert shapes == {7, 9}


def test_another_file_system(prepared):
    """An object store, as far as TensorFlow's own stand-in for one goes."""
    files = tensorflow.io.gfile
    for name, content in contents(prepared).items():
        if not name.startswith("gct_volumes"):
            with files.GFile(f"ram://store/{name}", "wb") as file:
                file.write(content)
    for here, there in zip(reader(prepared), reader("ram://store"), strict=True):
        if callable(here):
            assert here(3) == there(3)


@pytest.fixture
def damaged(prepared, tmp_path):
    folder = tmp_path / "damaged"
    for name, content in contents(prepared).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    records, _ = reader(folder)
    shard, offset, _, _ = records.places[5]
    path = Path(records.paths[shard])
    content = bytearray(path.read_bytes())
    content[offset + 100] ^= 1
    path.write_bytes(content)
    return folder, path


def test_a_damaged_record_is_named_or_passed_over(damaged, capsys):
    folder, path = damaged
    records, read = reader(folder)
    rows = [Row(0, i, 9) for i in range(len(records.depths))]

    def whole(read):
        return list(stream([read], volume_view(False), lambda s: [rows[s]], 1, 0, len(rows)))

    with pytest.raises(InputError, match=f"{path.name} is damaged at byte"):
        whole(read)
    found = whole(RecordReader(records, skip_damaged=True))
    assert len(found) == len(rows)
    np.testing.assert_array_equal(found[5]["volume"], found[6]["volume"])
    assert f"passed over: {path}" in capsys.readouterr().err


def test_a_missing_shard_is_named(damaged):
    folder, path = damaged
    path.unlink()
    _, read = reader(folder)
    with pytest.raises(InputError, match=f"{path.name}: cannot be read"):
        next(stream([read], volume_view(False), lambda s: [Row(0, 5, 9)], 1, 0, 1))


def test_unfinished_folders_are_refused(prepared, tmp_path):
    with pytest.raises(ConfigError, match="no folder of shards"):
        ShardFolder(str(tmp_path))
    (tmp_path / "about.json").write_text((prepared / "about.json").read_text())
    with pytest.raises(ConfigError, match="not finished"):
        ShardFolder(str(tmp_path))
