"""The environment may choose devices, not what a seed means."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gct_jax
from gct_jax.random_keys import GENERATOR, random_key, wrapped_key
from gct_jax.runtime.numerics import SETTINGS, fixed_numerics

ROOT = Path(gct_jax.__file__).parents[1]
DRAW = """
import sys
from gct_jax.runtime.exit_codes import exit_code

def run():
    from gct_jax.runtime.numerics import prepare_jax
    prepare_jax("gct")
    import jax, jax.numpy as jnp
    from gct_jax.random_keys import random_key
    print(repr(jax.random.normal(random_key(7), (2,)).tolist()), jnp.arange(2).dtype)

sys.exit(exit_code("gct", run))
"""
CHANGED = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
}


def draw(**environment):
    return subprocess.run(
        [sys.executable, "-c", DRAW],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_seed_means_the_same_in_every_environment():
    plain, changed = draw(), draw(**CHANGED)
    assert plain.stdout == changed.stdout
    expected = np.asarray(jax.random.normal(random_key(7), (2,)))
    assert plain.stdout == f"{expected.tolist()!r} int32\n"
    assert plain.stderr == ""
    assert [line.split("=")[0].split()[-1] for line in changed.stderr.splitlines()] == list(CHANGED)
    assert {name.lower() for name in CHANGED} == set(SETTINGS)


@pytest.mark.parametrize("platform", ["cuda", "tpu", "abacus"])
def test_a_device_that_is_absent_is_one_line(platform):
    result = draw(JAX_PLATFORMS=platform)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("gct")]
    assert line.startswith(f"gct: error: JAX_PLATFORMS={platform}: no such device can be used here")


def test_callers_of_another_mind_get_the_same_numbers():
    expected = np.asarray(jax.random.normal(random_key(7), (3,)))
    with jax.enable_x64(True), jax.default_prng_impl("rbg"), fixed_numerics():
        found = jax.random.normal(random_key(7), (3,))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.float32


def test_keys_name_their_generator():
    with jax.default_prng_impl("rbg"):
        key = random_key(3)
        again = wrapped_key(jax.random.key_data(key))
    assert str(jax.random.key_impl(key)) == GENERATOR == str(jax.random.key_impl(again))


def test_no_key_is_made_elsewhere():
    """A key without a named generator follows the environment."""
    makers = ("jax.random.key(", "jax.random.PRNGKey(", "jax.random.wrap_key_data(")
    rooms = [ROOT / room for room in ("gct_jax", "launch", "data_pipelines")]
    found = {
        path.name
        for room in rooms
        for path in room.rglob("*.py")
        if any(maker in path.read_text("utf-8") for maker in makers)
    }
    assert found == {"random_keys.py"}
