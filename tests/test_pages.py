"""The Python of the pages runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest
from chest_ct import chest, save

ROOT = Path(__file__).parent.parent


def run(page: str) -> dict:
    """Names after all blocks of Python of a page, in their order."""
    names: dict = {}
    for block in re.findall(
        r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S
    ):
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.long
def test_the_functional_page():
    found = run("gct_jax/FUNCTIONAL.md")
    assert found["ct"].volume_hu.shape == (9, 64, 64)
    assert found["ct"].spacing_mm == (9.0, 5.625, 5.625)
    length = float(np.sum(np.square(found["gradient"])))
    np.testing.assert_allclose(found["towards"], length, rtol=1e-3)
    assert -1000 < found["density"] < -400
    assert length > 0
    assert found["losses"][-1] < 0.95 * found["losses"][0]


@pytest.mark.long
def test_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "ct.nii.gz", chest())
    found = run("README.md")
    assert found["ct"].volume_hu.shape == (33, 256, 256)
    assert (tmp_path / "out" / "preview.png").exists()
    assert found["ids"].ndim == 3
