"""Order and content of batches, and the shards of prepared cases."""

import numpy as np
import pytest

from data_pipelines import batches, shards
from data_pipelines.phantom.report_parser import parse_report
from data_pipelines.phantom.source import PhantomSource
from gct_jax.errors import ConfigError
from gct_jax.training.config import DataConfig

SOURCE = PhantomSource(DataConfig(cases=20, held_out=4))


def test_every_case_comes_once_per_epoch_in_an_order_of_its_own():
    epochs = [
        [
            case
            for step in range(5 * epoch, 5 * epoch + 5)
            for case in batches.batch_cases(3, step, 4, 20)
        ]
        for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    assert epochs[0] == [case for step in range(5) for case in batches.batch_cases(3, step, 4, 20)]


def test_no_batch_holds_a_case_twice():
    for step in range(12):
        chosen = batches.batch_cases(0, step, 4, 6)
        assert len(set(chosen)) == 4 and set(chosen) <= set(range(6))


def test_rows_of_a_batch_are_its_cases_each_with_its_copies():
    rows = batches.rows_of([7, 3, 9], [5, 0, 1], copies=2)
    assert rows == [(5, 9, 1), (0, 7, 0), (1, 7, 1)]


def test_stream_started_later_continues_the_same_sequence():
    def collect(start):
        stream = batches.stream(lambda step, cases: (step, cases), start, 5, 2, 9)
        return [next(stream) for _ in range(12 - start)]

    assert collect(0)[7:] == collect(7)


def test_intensity_is_clipped_thousandths_of_hu():
    values = batches.unit_intensity(np.array([[[-1500, -1000, 0, 40, 3000]]], np.int16))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.ravel(), [-1, -1, 0, 0.04, 1])


def test_report_varies_with_the_step_and_states_the_same_findings():
    texts = {batches.report(SOURCE, 11, 0, step) for step in range(6)}
    assert len(texts) > 1
    assert texts == {batches.report(SOURCE, 11, 0, step) for step in range(6)}
    found = [{finding.name for finding in parse_report(text).findings} for text in texts]
    assert all(names == found[0] for names in found)


def test_pool_resumes_and_reads_back(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 3)
    made = []

    def make(case):
        made.append(case)
        return np.full((2, 2), case, np.int16), np.float32(case) / 2

    shards.Writing(tmp_path, 7)(("a", "b"), make, {})
    assert made == list(range(7))
    shards.shard_path(tmp_path, "b", 1).unlink()
    shards.Writing(tmp_path, 7)(("a", "b"), make, {})
    assert made[7:] == [0, 3, 4, 5]  # case 0 to see that the folder is this version's
    shards.Writing(tmp_path, 8)(("a", "b"), make, {})
    assert made[11:] == [0, 6, 7]
    a, b = shards.Shards(tmp_path, "a"), shards.Shards(tmp_path, "b")
    for case in (0, 4, 6, 7):
        np.testing.assert_array_equal(a(case), np.full((2, 2), case))
        assert b(case) == case / 2


def test_pool_of_another_version_is_refused(tmp_path):
    shards.Writing(tmp_path, 2)(("a",), lambda case: (np.full((4, 4), case, np.int16),), {})
    with pytest.raises(ConfigError, match=r"a_00000\.npy does not hold"):
        shards.Writing(tmp_path, 2)(("a",), lambda case: (np.full((4, 4), case + 9, np.int16),), {})


def test_slices_of_a_batch_belong_together_and_do_not_depend_on_the_process():
    low = {
        case: np.full((4, 2, 2), 100 * case, np.int16) + np.arange(4)[:, None, None]
        for case in range(3)
    }
    high = {case: np.kron(array, np.ones((1, 2, 2), np.int16)) for case, array in low.items()}

    def make(numbers, step=4):
        return batches.slice_batch(
            SOURCE,
            low.__getitem__,
            high.__getitem__,
            lambda texts: np.zeros((len(texts), 5), np.int32),
            0,
            step,
            batches.rows_of([2, 0], numbers),
        )

    batch = make([0, 1])
    for number in range(2):
        for name, array in make([number]).items():
            np.testing.assert_array_equal(array[0], batch[name][number])
    assert len({float(make([0], step)["low_res"][0, 0, 0, 0]) for step in range(20)}) == 4
    assert batch["low_res"].shape == (2, 2, 2, 1) and batch["high_res"].shape == (2, 4, 4, 1)
    np.testing.assert_array_equal(batch["low_res"][:, 0, 0], batch["high_res"][:, -1, -1])
    assert batch["low_res"][0, 0, 0, 0] == pytest.approx(0.2, abs=0.004)


def test_pool_made_from_something_else_is_refused(tmp_path):
    def make(case):
        return [np.full((4, 4), case, np.int16)]

    shards.Writing(tmp_path, 2)(("a",), make, {"spacing_mm": (1.0, 2.0)})
    shards.Reading(tmp_path, 2, "")(("a",), make, {"spacing_mm": (1.0, 2.0)})
    for keep in (shards.Writing(tmp_path, 2), shards.Reading(tmp_path, 2, "")):
        with pytest.raises(ConfigError, match=r"spacing_mm = \[1\.0, 2\.0\], not \[1\.0, 3\.0\]"):
            keep(("a",), make, {"spacing_mm": (1.0, 3.0)})
    (tmp_path / "a.json").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*a\.json"):
        shards.Reading(tmp_path, 2, "")(("a",), make, {})


def test_reading_what_is_missing_names_the_command(tmp_path):
    def make(case):
        return [np.full((2, 2), case, np.int16)]

    with pytest.raises(ConfigError, match=r"lacks 1 of 1 shards of a; prepare them: do it$"):
        shards.Reading(tmp_path, 3, "do it")(("a",), make, {})
    shards.Writing(tmp_path, 3)(("a",), make, {})
    (a,) = shards.Reading(tmp_path, 3, "do it")(("a",), make, {})
    assert a(2)[0, 0] == 2
    with pytest.raises(ConfigError, match=r"prepare them: do it$"):
        shards.Reading(tmp_path, 4, "do it")(("a",), make, {})


def test_cases_in_memory_are_made_once_while_there_is_room():
    made = []

    def make(case):
        made.append(case)
        return np.full(10, case, np.int16), np.full(5, -case, np.int32)

    a, b = shards.InMemory(most_bytes=100)(("a", "b"), make, {})  # two cases of 40 bytes
    for case in (0, 1, 0, 1):
        assert a(case)[0] == case and b(case)[0] == -case
    assert made == [0, 1]
    a(0), a(2), a(0)  # 1 was the one used longest ago
    assert made == [0, 1, 2]
    b(1)
    assert made == [0, 1, 2, 1]


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_damaged_shard_is_made_again(tmp_path, content):
    shards.Writing(tmp_path, 2)(("a",), lambda case: (np.full((4, 4), case, np.int16),), {})
    path = shards.shard_path(tmp_path, "a", 0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    shards.Writing(tmp_path, 2)(("a",), lambda case: (np.full((4, 4), case, np.int16),), {})
    assert path.read_bytes() == whole
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "a.json"}
