"""Checkpoints that were damaged in nine ways, and readers beside a run that saves."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from line_stage import RULES, batch_of, init_state, leaves, run

from gct_jax import sharding
from gct_jax.errors import GctError
from gct_jax.random_keys import random_key
from gct_jax.training import checkpoint
from gct_jax.training.checkpoint import Checkpoints, read_items
from gct_jax.training.checksums import checksum, tree_checksums
from gct_jax.training.loop import HeldOut, with_shardings


@pytest.fixture(autouse=True)
def parameter_rules(monkeypatch):
    monkeypatch.setattr(sharding, "PARAMETER_RULES", RULES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of 12 steps with checkpoints at 10 and 12."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "PARAMETER_RULES", RULES)
        state = run(folder, held_out=[HeldOut(8, batch_of(99))])
    return folder, leaves(state)


def placed(mesh=(1, 1, 1)):
    abstract = jax.eval_shape(init_state, random_key(0), None)
    devices = sharding.make_mesh(mesh, jax.devices()[: int(np.prod(mesh))])
    return with_shardings(abstract, sharding.state_shardings(abstract, devices))


def arrays(item):
    """The files that hold an item's numbers."""
    return [path for path in item.rglob("d/*") if path.is_file()]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    data[len(data) // 2 + 1] ^= 0xFF
    path.write_bytes(data)


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "emptied": emptied,
    "a missing item": lambda step: shutil.rmtree(step / "params.line"),
    "missing arrays": lambda step: [path.unlink() for path in arrays(step / "params.line")],
    "cut arrays": lambda step: [path.write_bytes(b"abc") for path in arrays(step / "ema.line")],
    "flipped bytes": lambda step: [flip(path) for path in arrays(step / "ema.line")],
    "no index": lambda step: (step / "ema.line" / "manifest.ocdbt").unlink(),
    "an empty index": lambda step: (step / "ema.line" / "manifest.ocdbt").write_bytes(b""),
    "no progress": lambda step: shutil.rmtree(step / "progress"),
    "half a progress": lambda step: (step / "progress" / "metadata").write_text('{"step": 1'),
    "another step": lambda step: (step / "progress" / "metadata").write_text('{"step": 3}'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_newest_whole_one_is_used_and_the_damaged_one_set_aside(
    trained, tmp_path, capsys, kind
):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    DAMAGE[kind](folder / "checkpoints" / "12")
    resumed = run(folder)
    told = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert len(told) == 1
    assert "checkpoint 12 in" in told[0] and "is damaged (" in told[0]
    assert told[0].endswith("it is kept as 12.damaged")
    for a, b in zip(leaves(resumed), trained[1], strict=True):
        np.testing.assert_array_equal(a, b)
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"10", "12", "12.damaged"}
    with Checkpoints(folder / "checkpoints") as again:
        assert int(again.restore(placed()).step) == 12


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_reader_takes_the_earlier_one_and_changes_nothing(trained, tmp_path, capsys, kind):
    folder = shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints")
    DAMAGE[kind](folder / "12")
    before = sorted(folder.rglob("*"))
    state = read_items(folder, placed(), ("ema.line",))
    assert sorted(folder.rglob("*")) == before
    needed = kind not in ("a missing item", "missing arrays")
    assert int(state.step) == (10 if needed else 12)  # what is not needed is not looked at
    assert ("an earlier one is read" in capsys.readouterr().err) is needed


def test_every_one_damaged_is_refused_in_one_line_and_nothing_starts_over(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    for step in ("10", "12"):
        emptied(folder / "checkpoints" / step)
    before = (folder / "metrics.jsonl").read_bytes()
    message = r"checkpoint 10 in .* is damaged .*no other is whole"
    with pytest.raises(GctError, match=message):
        read_items(folder / "checkpoints", placed(), ("ema.line",))
    for _ in range(2):
        with pytest.raises(GctError, match=message):
            run(folder)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"10", "12"}
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_changed_values_behind_valid_files_are_found(trained, tmp_path):
    """Whatever a disk does to the arrays: here the recorded checksum is the one that changed."""
    folder = shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints")
    path = folder / "12" / "progress" / "metadata"
    progress = json.loads(path.read_text())
    progress["arrays"]["ema.line"]["['kernel']"][1] ^= 1
    path.write_text(json.dumps(progress))
    assert int(read_items(folder, placed(), ("ema.line",)).step) == 10


def test_another_state_is_not_damage(trained, tmp_path):
    folder = shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints")
    abstract = placed()
    wider = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    abstract = abstract.replace(ema={"line": {"kernel": wider}})
    with pytest.raises(GctError, match=r"another ema.line: .*\[4, 2\] there, \[4, 3\] in this"):
        read_items(folder, abstract, ("ema.line",))
    with pytest.raises(GctError, match=r"another ema\.line"), Checkpoints(folder) as checkpoints:
        checkpoints.restore(abstract)
    assert {path.name for path in folder.iterdir()} == {"10", "12"}


def test_no_checkpoint(tmp_path):
    with pytest.raises(GctError, match=f"{tmp_path}.*no checkpoint"):
        read_items(tmp_path, placed(), ("ema.line",))
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(placed()) is None


def test_a_reader_leaves_a_save_in_progress_alone(trained, tmp_path):
    folder = shutil.copytree(trained[0] / "checkpoints", tmp_path / "checkpoints")
    saving = folder / "15.orbax-checkpoint-tmp-3"
    (saving / "ema.line").mkdir(parents=True)
    assert int(read_items(folder, placed(), ("ema.line",)).step) == 12
    assert (saving / "ema.line").is_dir()


def test_a_save_that_fails_in_the_background_is_noticed_at_the_next_step(tmp_path, monkeypatch):
    steps = []
    check = Checkpoints.check

    def failing(self):
        steps.append(len(steps) + 1)
        if steps[-1] == 6:  # the step after the first save
            error = OSError(28, "No space left on device")
            monkeypatch.setattr(self._manager, "check_for_errors", raising(error))
        check(self)

    monkeypatch.setattr(Checkpoints, "check", failing)
    with pytest.raises(GctError, match=r"cannot save a checkpoint in .*No space left"):
        run(tmp_path)
    assert steps[-1] == 6


def raising(error):
    def call():
        raise error

    return call


def test_libraries_are_silent_while_a_checkpoint_is_read():
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    before = [logger.level for logger in loggers]
    with checkpoint._quiet():
        assert not any(logger.isEnabledFor(logging.CRITICAL) for logger in loggers)
    assert [logger.level for logger in loggers] == before


# --- Checksums


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2), (1, 4, 2), (8, 1, 1)])
def test_a_checksum_does_not_depend_on_the_mesh(mesh):
    values = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    devices = sharding.make_mesh(mesh, jax.devices()[: int(np.prod(mesh))])
    spec = jax.sharding.PartitionSpec(("data", "fsdp"), "tensor")
    array = jax.device_put(values, jax.sharding.NamedSharding(devices, spec))
    assert int(checksum(array)) == int(checksum(jnp.asarray(values))) == reference(values)


def reference(values):
    """Equation (1) with Python's integers."""
    total = 0
    for i, bits in enumerate(values.ravel().view(np.uint32).tolist()):
        total += 0x85EBCA6B * (bits ^ (0x9E3779B1 * i) % 2**32)
    return total % 2**32


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32, jnp.bfloat16, np.int8, bool])
def test_any_single_change_changes_it(dtype):
    values = jnp.asarray(np.arange(24).reshape(4, 6) % 2, dtype)
    before = int(checksum(values))
    for row, column in np.ndindex(4, 6):
        assert int(checksum(values.at[row, column].set(values[row, column] == 0))) != before
    assert int(checksum(values[:, ::-1])) != before
    assert tree_checksums({"a": values}) == {"['a']": [[4, 6], before]}


@pytest.mark.parametrize("other", [0, 1])
def test_processes_agree_on_a_damaged_checkpoint(monkeypatch, other):
    """One that another process cannot read is damaged for all; each tells the others once."""
    told = []

    def on_any_process(mine):
        told.append(mine)
        return mine or bool(other)

    monkeypatch.setattr(checkpoint, "on_any_process", on_any_process)
    found = ({"a": 1}, {})
    if other:
        with pytest.raises(checkpoint.DamagedError, match="another process"):
            checkpoint._all_agree(lambda: found)
    else:
        assert checkpoint._all_agree(lambda: found) == found
    with pytest.raises(checkpoint.DamagedError, match="mine"):
        checkpoint._all_agree(raising(checkpoint.DamagedError("mine")))
    assert told == [False, True]
