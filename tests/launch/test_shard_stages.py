"""Every stage on shards: what is computed once is what training would compute, and misfits are
refused."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from chest_ct import chest, save
from tiny_model import quick_compilation, save_tiny_model

pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_datasets")

from configs import tiny
from data_pipelines.folder import FolderSource
from data_pipelines.shard_reader import RecordReader, ShardFolder
from gct_jax.components import build_component
from gct_jax.config import override
from gct_jax.errors import ConfigError, InputError
from gct_jax.sampling.cascade import embed_text
from gct_jax.text import Tokenizer
from gct_jax.training.config import DataConfig
from gct_jax.training.stages import join_components
from gct_jax.volumes.intensity import to_int16_hu, to_unit
from gct_jax.volumes.placement import on_grid, place
from launch import data, prepare, train
from launch.grids import low_grid

GRID = "5x16x16@9x5x5"  # of the tiny model that tests save
ALONE = ["ctvit.counterfactual_pairs=False", "maskgit.counterfactual_pairs=False"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def components(model):
    return join_components(None, [model])


@pytest.fixture(scope="module")
def cts(tmp_path_factory):
    root = tmp_path_factory.mktemp("cts")
    lines = ["path,report,age,sex"]
    for i in range(20):
        save(root / f"{i:02d}.nii.gz", chest(seed=i))
        lines.append(f"{i:02d}.nii.gz,{'Large effusion.' if i else ''},{40 + i},M")
    (root / "reports.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def folders(cts, model, tmp_path_factory):
    """Volumes, tokens with text, pairs: as the command line makes them."""
    out = tmp_path_factory.mktemp("shards")
    made = {name: str(out / name) for name in ("volumes", "embedded", "pairs")}

    def run(*words):
        assert prepare.main([*map(str, words), "--workers", "1"]) == 0

    run("--source", "folder", "--root", cts, "--reports", cts / "reports.csv", "--grid", GRID,
        "--held-out", 8, "--out", made["volumes"], "--cases-per-shard", 5)  # fmt: skip
    run("--tokens", made["volumes"], "--from", model, "--out", made["embedded"])
    run("--pairs", made["volumes"], "--from", model, "--slices-per-case", 2, "--out", made["pairs"])
    return made


def numbers(source):
    """Numbers of cases by their names in records."""
    from data_pipelines.preparation import listing_identity, numbers_by_key

    return numbers_by_key(source, listing_identity(source).key)


def cases(cts):
    return FolderSource(
        DataConfig(root=str(cts), reports=str(cts / "reports.csv"), held_out=8, cases=99)
    )


def records(folder, split="train"):
    """Records of a folder as NumPy values."""
    from data_pipelines.features import pair_features, token_features, volume_features

    opened = ShardFolder(folder)
    if opened.kind == "tokens":
        about = opened.about
        features = token_features(about.get("text_width", 0), about["codebook_size"])
    else:
        features = {"pairs": pair_features, "volumes": volume_features}[opened.kind]()
    found = opened.split(split)
    read = RecordReader(found)
    return [
        {k: v.numpy() for k, v in features.deserialize_example(read(i)).items()}
        for i in range(len(found.depths))
    ]


def test_tokens_and_text_are_those_of_the_networks(cts, components, folders):
    source, config = cases(cts), components.config
    number = numbers(source)
    ctvit = build_component(config, "ctvit")
    encode = jax.jit(lambda v: ctvit.apply(components.variables["ctvit"], v, method="encode"))
    tokenizer = Tokenizer(components.tokenizer)
    found = records(folders["embedded"]) + records(folders["embedded"], "validation")
    assert len(found) == 19  # one has no report
    for record in found:
        case = number[record["case"].decode()]
        volume = to_unit(source.volume_hu(case, low_grid(config)))[None, ..., None]
        np.testing.assert_array_equal(record["ids"], encode(volume)[0])
        ids = tokenizer.encode_batch([source.case(case).report], max_length=config.t5.max_length)
        text = embed_text(components.variables["t5"], ids, config=config)[0]
        np.testing.assert_array_equal(record["text"], np.asarray(text)[: (ids > 0).sum()])


def test_pairs_are_the_reconstruction_and_the_ct(cts, components, folders):
    source, config = cases(cts), components.config
    number = numbers(source)
    ctvit = build_component(config, "ctvit")
    grid, size = low_grid(config), config.diffusion.image_size
    rebuild = jax.jit(lambda v: ctvit.apply(components.variables["ctvit"], v).reconstruction)
    found = records(folders["pairs"])
    assert [record["case"] for record in found[::2]] == [record["case"] for record in found[1::2]]
    for record in found:
        ct = source.read(number[record["case"].decode()])
        placed = place(ct, grid.shape, grid.spacing_mm).grid
        unit = to_unit(on_grid(ct, placed))[None, ..., None]
        low = to_int16_hu(rebuild(unit)[0, ..., 0])
        mm = placed.spacing_mm[1] * placed.shape[1] / size
        fine = placed.regrid((placed.shape[0], size, size), (placed.spacing_mm[0], mm, mm))
        high = on_grid(ct, fine)
        matches = [
            i for i in range(len(low))
            if np.abs(low[i].astype(int) - record["low"][0]).max() <= 1
            and np.array_equal(high[i], record["high"][0])
        ]  # fmt: skip
        assert len(matches) == 1
        # The fine slice, averaged, is the coarse one.
        mean = record["high"][0].reshape(grid.shape[1], -1, grid.shape[2], size // grid.shape[2])
        coarse = on_grid(ct, placed)[matches[0]]
        assert np.abs(mean.mean((1, 3)) - coarse).mean() < 90


def stage_config(stage, folder, components, *options):
    alone = [] if any("counterfactual" in option for option in options) else ALONE
    words = ["data.source=shards", f"data.folder={folder}", *alone, *options]
    config = override(getattr(tiny, stage)(), words)
    return dataclasses.replace(config, model=components.config)


SHAPES = {
    "ctvit": ("volumes", {"volume": (8, 5, 16, 16, 1)}),
    "maskgit": ("embedded", {"token_ids": (8, 3, 2, 2), "text_ids": (8, 48)}),
    "superres": ("pairs", {"low_res": (8, 16, 16, 1), "high_res": (8, 32, 32, 1),
                           "text_ids": (8, 48)}),
}  # fmt: skip


@pytest.mark.parametrize("stage", SHAPES)
def test_batches(components, folders, tmp_path, stage):
    name, shapes = SHAPES[stage]
    config = stage_config(stage, folders[name], components)
    opened = data.check_data(config, components, "")
    made = data.stage_data(config, opened, tmp_path, components, "", range)
    stream = made.batches(0)
    first = [next(stream) for _ in range(3)]
    for batch in [*first, *(batch for _, batch in made.held_out)]:
        assert {key: value.shape for key, value in batch.items()} == shapes
    later = next(made.batches(2))
    jax.tree.map(np.testing.assert_array_equal, first[2], later)
    # of several processes each makes its rows
    part = data.stage_data(config, opened, tmp_path, components, "", lambda rows: [1, 6])
    own = next(part.batches(2))
    jax.tree.map(np.testing.assert_array_equal, {n: x[[1, 6]] for n, x in later.items()}, own)
    (_, whole), (_, own) = made.held_out[0], part.held_out[0]
    jax.tree.map(np.testing.assert_array_equal, {n: x[[1, 6]] for n, x in whole.items()}, own)
    jax.tree.map(np.testing.assert_array_equal, {n: x[:4] for n, x in whole.items()}, part.shown)
    assert "training records" in made.cases_of(2)


def test_a_frozen_text_encoder_reads_embeddings(components, folders, tmp_path):
    frozen = "maskgit.train_text_encoder=False"
    config = stage_config("maskgit", folders["embedded"], components, frozen)
    opened = data.check_data(config, components, "")
    batch = next(data.stage_data(config, opened, tmp_path, components, "", range).batches(0))
    assert batch["text"].shape == (8, 48, components.config.t5.dim)
    assert (batch["text"][~batch["text_mask"]] == 0).all() and batch["text_mask"].any(1).all()


def test_a_case_without_a_report_is_named(components, folders, tmp_path):
    config = stage_config("t5", folders["volumes"], components, "t5.attributes=18")
    opened = data.check_data(config, components, "")
    (without,) = [case for case in records(folders["volumes"]) if not case["report"]]
    with pytest.raises(InputError, match=f"{without['case'].decode()} has no report"):
        made = data.stage_data(config, opened, tmp_path, components, "", range)
        for _ in itertools.islice(made.batches(0), 4):
            pass


@pytest.mark.parametrize(
    ("stage", "name", "options", "message"),
    [
        ("maskgit", "volumes", [], "reads tokens: launch.prepare --tokens"),
        ("ctvit", "pairs", [], "reads volumes"),
        ("ctvit", "volumes", ["ctvit.counterfactual_pairs=True"], "no counterfactuals"),
        ("ctvit", "volumes", ["loop.batch_size=16"], "has 12 for training"),
        ("ctvit", "volumes", ["data.weights=[0.5,0.5]"], "2 entries for 1 folders"),
    ],
)
def test_misfits_are_refused(components, folders, stage, name, options, message):
    config = stage_config(stage, folders[name], components, *options)
    with pytest.raises(ConfigError, match=message):
        data.check_data(config, components, "")


def test_another_grid_and_other_networks_are_refused(components, folders):
    config = stage_config("ctvit", folders["volumes"], components)
    volume = dataclasses.replace(config.model.volume, pixel_spacing_mm=20.0)
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, volume=volume))
    with pytest.raises(ConfigError, match="the model reads"):
        data.check_data(wrong, components, "")
    other = dict(components.variables)
    other["ctvit"] = jax.tree.map(lambda leaf: leaf + 1, other["ctvit"])
    for stage, name in (("maskgit", "embedded"), ("superres", "pairs")):
        config = stage_config(stage, folders[name], components)
        with pytest.raises(ConfigError, match="was made by another ctvit"):
            data.check_data(config, components._replace(variables=other), "")


def test_folders_are_mixed(components, folders, tmp_path):
    words = [f"data.more_folders=['{folders['volumes']}']", "data.weights=[0.25,0.75]"]
    config = stage_config("ctvit", folders["volumes"], components, *words)
    opened = data.check_data(config, components, "")
    rows = [row.folder for step in range(6) for row in opened.plan.rows(step)]
    assert rows.count(0) == 12 and rows.count(1) == 36
    batch = next(data.stage_data(config, opened, tmp_path, components, "", range).batches(0))
    assert batch["volume"].shape[0] == 8


@pytest.mark.long
def test_a_run_on_shards(model, folders, tmp_path):
    words = ["--config", "configs/tiny.py:ctvit", "--workdir", str(tmp_path), "--from", str(model)]
    words += ["model.volume.slice_spacing_mm=9.0", "model.volume.pixel_spacing_mm=5.0", *ALONE]
    words += ["data.source=shards", f"data.folder={folders['volumes']}", "loop.steps=2"]
    assert train.main([*words, "loop.sample_every=0"]) == 0
    trained = join_components(None, [tmp_path]).variables["ctvit"]
    given = join_components(None, [model]).variables["ctvit"]
    same = jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), trained, given))
    assert not all(same) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--source", "folder", "--out", "o"], "needs --grid"),
        (["--source", "phantom", "--grid", "tiny", "--out", "o"], "--cases N"),
        (["--source", "folder", "--grid", "7x8x9", "--out", "o"], "state the spacing too"),
        (["--source", "folder", "--grid", "big", "--out", "o"], "is none of"),
        (["--source", "folder", "--grid", "tiny", "--root", "none", "--out", "o"], "no folder"),
        (["--source", "tiny", "--grid", "tiny", "--out", "o"], "none of phantom"),
        (["--source", "folder", "--grid", "tiny", "--depths", "3,4", "--out", "o"], "--depths"),
        (["--tokens", "none", "--out", "o"], "--from"),
        (["--pairs", "none", "--out", "o", "x=1"], "goes with --config"),
        (["--source", "folder", "--grid", "tiny", "--shards", "2", "--out", "o"], "--shard I"),
        (["--source", "folder", "--grid", "tiny", "--shard", "2", "--out", "o"], "from 0"),
        (["--source", "folder", "--grid", "tiny", "--workers", "0", "--out", "o"], "at least 1"),
    ],
)
def test_bad_options(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert prepare.main(words) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and message in error[0]
    assert not (tmp_path / "o").exists()


def test_strict_makes_rejections_an_error(cts, tmp_path, capsys):
    save(tmp_path / "cts" / "good.nii.gz")
    save(tmp_path / "cts" / "other.nii.gz", chest(seed=4))
    (tmp_path / "cts" / "bad.nii.gz").write_bytes(b"x")
    words = ["--source", "folder", "--root", str(tmp_path / "cts"), "--grid", "tiny"]
    words += ["--out", str(tmp_path / "out"), "--workers", "1", "--held-out", "1"]
    assert prepare.main(words) == 0
    assert "1 rejected" in capsys.readouterr().out
    assert prepare.main([*words, "--strict"]) == 2
    assert "without --strict that is no error" in capsys.readouterr().err
