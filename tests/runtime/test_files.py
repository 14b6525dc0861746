import os
from pathlib import Path

import pytest

from gct_jax.errors import InputError
from gct_jax.runtime.files import replace_files_when_done, replace_when_done


def test_appears_whole_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    for content in ("one", "two"):
        with replace_when_done(path) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text(content)
            assert not path.exists() or path.read_text() != content
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "b.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_when_done(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_cannot_be_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(InputError, match="cannot write"),
        replace_when_done(tmp_path / "out") as temporary,
    ):
        temporary.write_text("x")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_files_of_a_folder_are_replaced_together(tmp_path):
    out = tmp_path / "out"
    for content in ("old", "new"):
        with replace_files_when_done(out) as temporary:
            for name in ("a", "b", "c"):
                (temporary / name).write_text(content)
        assert {path.name: path.read_text() for path in out.iterdir()} == dict.fromkeys(
            "abc", content
        )
        (out / "mine").write_text(content)
        (out / "mine").unlink()
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("stubborn", ["a", "b", "c"])
def test_one_file_that_cannot_be_replaced_leaves_all_as_they_were(tmp_path, stubborn):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a", "b"):
        (out / name).write_text("old")
    (out / stubborn).unlink(missing_ok=True)
    (out / stubborn).mkdir()
    (out / stubborn / "inside").write_text("mine")
    before = sorted(out.rglob("*"))
    with pytest.raises(InputError, match="it is a folder"), replace_files_when_done(out) as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_text("new")
    assert sorted(out.rglob("*")) == before
    assert all(path.read_text() == "old" for path in before if path.name in {"a", "b"} - {stubborn})
    with (
        pytest.raises(InputError, match="it is a folder"),
        replace_files_when_done(out, ["a", "b", "c"]),
    ):
        raise AssertionError("found out too late")


def test_a_move_that_fails_halfway_is_taken_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")
    (out / "c").write_text("old")
    replace = os.replace

    def refusing(source, target):
        if Path(target) == out.resolve() / "c" and Path(source).parent.name != "earlier":
            raise PermissionError(1, "Operation not permitted", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(InputError, match="not permitted"), replace_files_when_done(out) as folder:
        for name in ("a", "b", "c"):
            (folder / name).write_text("new")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"a": "old", "c": "old"}


def test_processes_with_the_same_number_do_not_meet(tmp_path):
    with replace_when_done(tmp_path / "x") as first, replace_when_done(tmp_path / "x") as second:
        first.write_text("first")
        second.write_text("second")
    with (
        replace_files_when_done(tmp_path / "out") as first,
        replace_files_when_done(tmp_path / "out") as second,
    ):
        (first / "a").write_text("first")
        (second / "b").write_text("second")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "b"}


@pytest.mark.parametrize("name", ["a" * 248 + ".nii.gz", "胸" * 85, "a." + "b" * 253])
def test_any_legal_name_can_be_written(tmp_path, name):
    with replace_when_done(tmp_path / name) as temporary:
        temporary.write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (tmp_path / name).unlink()
    with replace_files_when_done(tmp_path / name) as temporary:
        (temporary / "x").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_parents_made_for_nothing_are_removed(tmp_path):
    for writer in (replace_when_done, replace_files_when_done):
        with pytest.raises(ZeroDivisionError), writer(tmp_path / "a" / "b" / "c"):
            raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
