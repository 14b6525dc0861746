"""Rules about who imports and asks what, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gct_jax"


def names(path: Path) -> set[str]:
    """Names that a file uses, imports or reads as attributes."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_only_kernels_ask_for_the_platform():
    asking = {"default_backend", "target_platform"}
    for path in sources("gct_jax", "configs", "data_pipelines"):
        if path.parent != PACKAGE / "kernels":
            assert not asking & names(path), path
    assert "default_backend" in names(PACKAGE / "kernels" / "target.py")


def test_random_keys_are_made_in_one_place():
    for path in sources("gct_jax", "data_pipelines"):
        if path.name != "random_keys.py":
            assert "PRNGKey" not in names(path), path


# Room -> rooms of gct_jax that it may import; a file beside the rooms is a room of its name.
GROUND = {"errors", "ranges", "config", "notes", "runtime", "random_keys"}
ALLOWED = {
    "errors": set(),
    "array_types": set(),
    "ranges": {"errors"},
    "config": {"errors", "ranges", "notes"},
    "notes": set(),
    "random_keys": {"errors", "config"},
    "runtime": {"errors", "random_keys", "config"},
    "sharding": {"errors"},
    "corruption": {"errors", "kernels", "array_types"},
    "volumes": GROUND,
    "kernels": {"sharding", "runtime", "errors", "array_types"},
    "models": {"kernels", "sharding", "errors", "array_types"},
    "components": GROUND | {"models", "kernels", "sharding"},
    "text": GROUND | {"readable_text"},
    "readable_text": GROUND,
    "provenance": GROUND,
    "chips": set(),
    "flops": {"kernels"},
    "model_folder": GROUND | {"components", "provenance", "text"},
}


def imports(path: Path) -> set[str]:
    """Rooms of gct_jax that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gct_jax."):
            found.add(str(node.module).split(".")[1])
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows_point_one_way(room):
    files = sources(f"gct_jax/{room}") or [PACKAGE / f"{room}.py"]
    for path in files:
        beyond = imports(path) - ALLOWED[room] - {room}
        assert not beyond, f"{path.relative_to(ROOT)} imports {sorted(beyond)}"


def test_sampling_and_training_do_not_know_each_other():
    for room, other in (("sampling", "training"), ("training", "sampling")):
        assert all(other not in imports(path) for path in sources(f"gct_jax/{room}"))


def test_the_package_imports_neither_data_pipelines_nor_launch():
    for path in sources("gct_jax"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [getattr(node, "module", None) or ""]
            modules += [alias.name for alias in getattr(node, "names", [])]
            roots = {module.split(".")[0] for module in modules}
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not roots & {"data_pipelines", "launch", "configs"}, path
