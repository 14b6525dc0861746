"""`generate` end to end with a tiny random model, and every bad input it must refuse."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from tiny_model import quick_compilation, save_tiny_model

import gct_jax
from gct_jax.cli import main
from gct_jax.commands.prompt_table import read_prompt_table
from gct_jax.model_folder import load_model
from gct_jax.sampling.cascade import Settings, generate_volumes

PROMPT = "58 years old female: Cardiomegaly."


@pytest.fixture(scope="module", autouse=True)
def compilation():
    """Compile quickly, and keep nothing: the subprocess below shows that the cache works."""
    with pytest.MonkeyPatch.context() as patch, quick_compilation():
        patch.setattr("gct_jax.runtime.compilation_cache.enable_compilation_cache", lambda: None)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "first"
    assert main(["generate", PROMPT, "--out", str(out), "--model", str(model), "--seed", "3"]) == 0
    return out


def voxels(folder):
    return np.asanyarray(nib.load(folder / "volume.nii.gz").dataobj)


def metadata(folder):
    return json.loads((folder / "metadata.json").read_text(encoding="utf-8"))


def test_volume_on_disk(made):
    assert {path.name for path in made.iterdir()} == {
        "volume.nii.gz",
        "preview.png",
        "metadata.json",
    }
    assert list(made.parent.iterdir()) == [made]
    image = nib.load(made / "volume.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.shape == (32, 32, 5)
    np.testing.assert_allclose(image.header.get_zooms(), (2.5, 2.5, 9.0))
    np.testing.assert_allclose(np.diag(image.affine), (2.5, 2.5, 9.0, 1.0))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert -1000 <= voxels(made).min() < voxels(made).max() <= 1000


def test_volume_on_disk_is_the_sampled_one(made, model):
    opened = load_model(model)
    text = opened.tokenizer.encode(PROMPT, 48)
    settings = Settings(slices=5, steps=3, superres_steps=2)
    (sampled,) = generate_volumes(opened, [text.ids], [3], settings)
    # [depth to S, height to P, width to L] -> [R, A, S]
    expected = np.rint(1000 * sampled.volume.transpose(2, 1, 0)[::-1, ::-1])
    np.testing.assert_array_equal(voxels(made), expected)


def test_metadata_and_preview(made, model):
    found = metadata(made)
    assert found["prompt"] == PROMPT
    assert found["prompt_not_read"] == ""
    assert (found["seed"], found["steps"], found["superres_steps"]) == (3, 3, 2)
    assert (found["slices_asked"], found["slices"], found["shape"]) == (5, 5, [5, 32, 32])
    assert (found["batch"], found["dtype"], found["superres_noise_correlation_mm"]) == (
        1,
        "float32",
        0,
    )
    assert found["spacing_mm"] == [9.0, 2.5, 2.5]
    assert found["model"] == {"name": "tiny", "sha256": load_model(model).sha256}
    assert {"text", "tokens", "decode", "superres", "write", "total"} == set(found["seconds"])
    assert {"gct_jax", "python", "jax", "flax"} <= set(found["versions"])
    assert (found["prompt_unknown"], found["random_generator"]) == ([], "threefry2x32")
    with Image.open(made / "preview.png") as picture:
        assert min(picture.size) > 300


def test_options_reach_the_sampler(model, tmp_path, capsys):
    words = "Large left pleural effusion. Cardiomegaly. " * 3
    options = ["--slices", "6", "--steps", "2", "--guidance", "1.5", "--no-superres"]
    options += ["--temperature", "0"]
    out = tmp_path / "new" / "out"
    arguments = ["generate", f"58 years old female: {words}", "--model", str(model), *options]
    assert main([*arguments, "--out", str(out)]) == 0
    found = metadata(out)
    assert (found["slices_asked"], found["slices"], found["steps"]) == (6, 7, 2)
    assert (found["guidance"], found["temperature"], found["superres"]) == (1.5, 0, False)
    assert voxels(out).shape == (16, 16, 7)
    assert found["spacing_mm"] == [9.0, 5.0, 5.0]
    cut = found["prompt_not_read"]
    assert cut
    assert " ".join(words.split()).endswith(cut)
    told = capsys.readouterr()
    assert f"too long; not read: '{cut}'" in told.err
    assert "6 slices are not possible with this model; making 7" in told.err
    assert "more than the 5 the model was trained on" in told.err
    assert "7 x 16 x 16 voxels of 9 x 5 x 5 mm, seed 0" in told.out


def test_at_temperature_0_every_seed_takes_the_likeliest_tokens(model, tmp_path):
    options = ["--model", str(model), "--steps", "2", "--no-superres", "--seeds", "0,1"]
    for temperature in ("0", "30"):
        out = tmp_path / temperature
        arguments = ["generate", PROMPT, *options, "--temperature", temperature]
        assert main([*arguments, "--out", str(out)]) == 0
    equal = [
        np.array_equal(*(voxels(tmp_path / temperature / f"seed_{seed}") for seed in (0, 1)))
        for temperature in ("0", "30")
    ]
    assert equal == [True, False]


def test_what_the_vocabulary_lacks_is_told(model, tmp_path, capsys):
    prompt = "58 years old female: Large (left) effusion, 胸部 50%"
    arguments = ["generate", prompt, "--model", str(model)]
    assert main([*arguments, "--no-superres", "--out", str(tmp_path / "out")]) == 0
    assert "does not know: '胸部', '%'" in capsys.readouterr().err
    found = metadata(tmp_path / "out")
    assert found["prompt_unknown"] == ["胸部", "%"]
    assert found["prompt_not_read"].startswith("胸部 %")


def test_a_file_that_cannot_be_replaced_is_found_out_first(made, model, tmp_path, capsys):
    out = shutil.copytree(made, tmp_path / "out")
    (out / "preview.png").unlink()
    (out / "preview.png").mkdir()
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    line = refused(capsys, ["generate", "Effusion.", "--model", model, "--out", out])
    assert "preview.png: it is a folder" in line
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_one_slice(model, tmp_path):
    arguments = ["generate", PROMPT, "--model", str(model), "--slices", "1", "--no-superres"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert voxels(tmp_path / "out").shape == (16, 16, 1)


@pytest.mark.long
def test_a_second_process_gives_the_same_file(made, model, tmp_path):
    """The real command, which also replaces old files, keeps others and fills the cache."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "volume.nii.gz").write_text("old")
    (out / "notes.txt").write_text("mine")
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # like this process, to the last bit
        "PYTHONPATH": str(Path(gct_jax.__file__).parents[1]),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "gct_jax", "generate", PROMPT, "--seed", "3"]
    result = subprocess.run(
        [*command, "--model", str(model), "--out", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "tokens" in result.stderr
    assert "superres" in result.stderr
    assert (out / "volume.nii.gz").read_bytes() == (made / "volume.nii.gz").read_bytes()
    assert (out / "preview.png").read_bytes() == (made / "preview.png").read_bytes()
    assert (out / "notes.txt").read_text() == "mine"
    assert any((tmp_path / "cache" / "gct_jax").iterdir())


def test_prompt_table(model, tmp_path, made):
    table = tmp_path / "prompts.csv"
    table.write_text(
        f'\ufeffname,prompt,seed\ncase a,"{PROMPT}",3\n,"20 years old male: Large, left.",\n',
        encoding="utf-8",
    )
    arguments = ["generate", "--prompts", str(table), "--model", str(model), "--seed", "10"]
    assert main([*arguments, "--batch", "8", "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"case a", "0002"}
    np.testing.assert_array_equal(voxels(tmp_path / "out" / "case a"), voxels(made))
    second = metadata(tmp_path / "out" / "0002")
    assert (second["prompt"], second["seed"]) == ("20 years old male: Large, left.", 11)


def test_columns_that_are_not_used_are_named(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("prompt,seedd\nabc,3\n")
    (request,) = read_prompt_table(tmp_path / "p.csv", 5, tmp_path)
    assert request.seed == 5
    assert "columns that are not used: seedd" in capsys.readouterr().err


def test_seeds_of_one_prompt_in_unequal_batches(model, tmp_path, made):
    out = tmp_path / "new" / "out"
    arguments = ["generate", PROMPT, "--model", str(model), "--seeds", "1, 3,2", "--batch", "2"]
    assert main([*arguments, "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"seed_1", "seed_2", "seed_3"}
    assert [metadata(out / f"seed_{seed}")["seed"] for seed in (1, 2, 3)] == [1, 2, 3]
    assert [metadata(out / f"seed_{seed}")["batch"] for seed in (1, 2, 3)] == [2, 1, 2]
    np.testing.assert_array_equal(voxels(out / "seed_3"), voxels(made))
    assert not np.array_equal(voxels(out / "seed_1"), voxels(out / "seed_2"))


def test_finished_batches_stay_when_a_later_one_is_interrupted(model, tmp_path, monkeypatch):
    batches = []

    def once(*arguments, **options):
        if batches:
            raise KeyboardInterrupt
        batches.append(arguments)
        return generate_volumes(*arguments, **options)

    monkeypatch.setattr("gct_jax.sampling.cascade.generate_volumes", once)
    arguments = ["generate", PROMPT, "--model", str(model), "--seeds", "3,4,5", "--batch", "2"]
    assert main([*arguments, "--no-superres", "--out", str(tmp_path / "out")]) == 130
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"seed_3", "seed_4"}


def refused(capsys, arguments):
    """The one line with which the command line refuses `arguments`."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    (line,) = told.err.splitlines()
    assert line.startswith("gct: error: ")
    return line


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "arguments are required: COMMAND"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["generate"], "give either a prompt"),
        (["generate", "x", "--prompts", "x.csv"], "give either a prompt"),
        (["generate", "x", "--bogus"], "unrecognized arguments: --bogus"),
        (["generate", "x", "--slices", "0"], "--slices: '0' is not a whole number from 1"),
        (["generate", "x", "--slices", "many"], "'many' is not a whole number"),
        (["generate", "x", "--steps", "-1"], "--steps"),
        (["generate", "x", "--sr-steps", "1.5"], "--sr-steps: '1.5' is not"),
        (["generate", "x", "--seed", "-1"], "--seed"),
        (["generate", "x", "--seed", str(2**32)], "is not a whole number from 0 to 4294967295"),
        (["generate", "x", "--seeds", "1,x"], "--seeds: 'x' is not a whole number"),
        (["generate", "x", "--seeds", "1,2,1"], "'1,2,1' names a seed twice"),
        (["generate", "x", "--seeds", "1,2", "--seed", "3"], "not allowed with"),
        (["generate", "--prompts", "x.csv", "--seeds", "1,2"], "--seeds goes with one prompt"),
        (["generate", "x", "--batch", "0"], "--batch: '0' is not a whole number from 1"),
        (["generate", "x", "--dtype", "float16"], "--dtype: invalid choice: 'float16'"),
        (["generate", "x", "--guidance", "nan"], "--guidance: 'nan' is not a number"),
        (["generate", "x", "--temperature", "-1"], "--temperature: '-1' is not a number from 0"),
        (["generate", "x", "--guidance", "1e30"], "is not a number from 0 to 1000"),
        (["generate", "x", "--model", "/no/such/model"], "no model folder /no/such/model"),
        (["generate", "x", "--model", "long" * 100], f"{'long' * 100}: File name too long"),
        (["generate", "x", "--prompts"], "--prompts"),
        (["generate", "--prompts", "/no/such.csv"], "cannot read /no/such.csv"),
    ],
)
def test_bad_options(capsys, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        (["  "], "the prompt is empty"),
        (["\udce9dema of the left lung"], "not valid UTF-8"),
        (["\u80f8\u90e8"], "knows 0 of the prompt's 2 letters"),
        (["\U0001f600 \U0001fac1"], "which is unknown"),
        ([PROMPT, "--slices", "13"], "13 slices are more than model 'tiny' holds: at most 11"),
    ],
)
def test_requests_the_model_cannot_fulfil(capsys, model, tmp_path, options, message):
    out = tmp_path / "out"
    line = refused(capsys, ["generate", *options, "--model", model, "--out", out])
    assert message in line
    assert not list(tmp_path.iterdir())


def test_damaged_model(capsys, model, tmp_path):
    damaged = shutil.copytree(model, tmp_path / "model")
    path = damaged / "maskgit.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    out = tmp_path / "out"
    line = refused(capsys, ["generate", PROMPT, "--model", damaged, "--out", out])
    assert f"{path} is damaged" in line
    assert not out.exists()


def test_output_that_cannot_be_written(capsys, model, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        line = refused(capsys, ["generate", PROMPT, "--model", model, "--out", out])
        assert f"cannot write {out}" in line or f"cannot write into {out}" in line
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "table, message",
    [
        (b"", "has no column 'prompt'"),
        (b"text\nabc\n", "no column 'prompt'; its columns are ['text']"),
        (b"prompt\n", "holds no prompts"),
        (b"prompt,name\n,a\n", "line 2: the prompt is empty"),
        (b"prompt,name\nabc, with comma, a\n", "line 2 has too many cells"),
        (b"prompt,name\nabc,a\nabc,a\n", "line 3: name 'a' is used twice"),
        (b'prompt,name\nabc,"a\nb"\n', "is no plain folder name"),
        (b"prompt;name\nabc;a\n", "Separate columns by commas"),
        (b"prompt,name\nabc,Aa\nabc,aA\n", "line 3: name 'aA' is used twice"),
        (b"prompt,name\nabc,../a\n", "line 2: name '../a' is"),
        (b"prompt,name\nabc,..\n", "line 2: name '..' is"),
        (b"prompt,seed\nabc,x\n", "line 2: seed 'x' is not a whole number"),
        (b"prompt,seed\nabc," + b"9" * 5000 + b"\n", "line 2: seed '999"),
        (b"prompt,prompt\nabc,def\n", "has 2 columns named 'prompt'"),
        (b"prompt,seed,name,seed\nabc,1,a,2\n", "has 2 columns named 'seed'"),
        (b"prompt\n\xff\xfe\n", "is not a CSV file in UTF-8"),
        (b'prompt\n"abc\n', "is not a CSV file"),
    ],
)
def test_bad_prompt_tables(capsys, tmp_path, table, message):
    path = tmp_path / "prompts.csv"
    path.write_bytes(table)
    assert message in refused(capsys, ["generate", "--prompts", path, "--out", tmp_path / "out"])
    assert list(tmp_path.iterdir()) == [path]


def test_interruption_leaves_nothing(made, model, capsys, monkeypatch):
    def interrupted(*_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("gct_jax.sampling.cascade.generate_volumes", interrupted)
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    arguments = ["generate", PROMPT, "--model", str(model), "--out"]
    assert main([*arguments, str(made)]) == 130
    assert main([*arguments, str(made.parent / "a" / "b")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before
    assert list(made.parent.iterdir()) == [made]


def test_help_and_version_need_no_jax():
    code = "import sys; from gct_jax.cli import build_parser; build_parser().format_help();"
    code += "sys.exit('jax' in sys.modules)"
    root = Path(gct_jax.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
