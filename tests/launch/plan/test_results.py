"""A stopped plan goes on: what its file has is not compiled again."""

import jax
import jax.numpy as jnp
import pytest

from gct_jax.errors import ConfigError
from gct_jax.sharding import make_mesh
from launch.plan.results import Results
from launch.plan.roofline import Refused

ASKED = {"config": "a.py", "overrides": ["dtype=bfloat16"], "rows": 8}


def lower():
    return jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32))


def refused():
    raise RuntimeError("RESOURCE_EXHAUSTED: Used 20.1G of 15.7G hbm")


def never():
    raise AssertionError("compiled again")


def test_what_is_known_is_not_compiled_again(tmp_path):
    path, mesh = tmp_path / "plan.json", make_mesh((1, 1, 1), jax.devices()[:1])
    first = Results(path, ASKED, resume=False)
    row, moving = first.compiled("v5e:2x4", "train", mesh, 8, lower)
    assert row.found.flops > 0 and moving
    large, _ = first.compiled("v5e:2x4", "large", mesh, 8, refused)
    assert large.found == Refused("needs 20.1G of 15.7G")
    again = Results(path, ASKED, resume=True)
    assert again.compiled("v5e:2x4", "train", mesh, 8, never) == (row, ())
    assert again.compiled("v5e:2x4", "large", mesh, 8, never) == (large, ())
    for topology, rows in (("v5e:2x4", 16), ("v6e:2x4", 8)):
        assert again.compiled(topology, "train", mesh, rows, lower)[1]


def test_files_of_other_plans_are_refused(tmp_path):
    path, mesh = tmp_path / "plan.json", make_mesh((1, 1, 1), jax.devices()[:1])
    with pytest.raises(ConfigError, match="there is no"):
        Results(path, ASKED, resume=True)
    with pytest.raises(ConfigError, match="give that too"):
        Results(None, ASKED, resume=True)
    Results(path, ASKED, resume=False).compiled("v5e:2x4", "train", mesh, 8, lower)
    with pytest.raises(ConfigError, match="made with another rows"):
        Results(path, {**ASKED, "rows": 16}, resume=True)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="not the file of a plan"):
        Results(path, ASKED, resume=True)
