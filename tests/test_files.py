import pytest

from gct_jax.errors import InputError
from gct_jax.files import replace_when_done


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
