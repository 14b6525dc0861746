"""Programs as shapes: what they hold follows from the shapes. With libtpu, the real compiler."""

import dataclasses
import functools
import importlib.util

import jax
import numpy as np
import pytest

from configs import base, tiny
from gct_jax.sharding import make_mesh
from launch.plan import __main__ as plan
from launch.plan.programs import abstract_state, attend, super_resolve, train_step
from launch.plan.roofline import compile_program

ROWS = 8


def tree_bytes(tree):
    def size(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return 8  # two words of 32 bits
        return int(np.prod(leaf.shape)) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


CONFIG = "configs/tiny.py:maskgit"


def tiny_maskgit():
    config = tiny.maskgit()
    return dataclasses.replace(config, loop=dataclasses.replace(config.loop, batch_size=ROWS))


@pytest.mark.long
def test_a_training_step_holds_its_state_and_its_batch():
    config = tiny_maskgit()
    ids = jax.ShapeDtypeStruct((ROWS, 3, 2, 2), np.int32)
    text = jax.ShapeDtypeStruct((ROWS, config.model.t5.max_length), np.int32)
    lowered = train_step(config, make_mesh((1, 1, 1)))
    facts, moving = compile_program(lambda: lowered)
    expected = tree_bytes((abstract_state(config), ids, text))
    assert facts.argument_bytes == pytest.approx(expected, 1e-3)
    assert facts.collectives == {}
    assert facts.flops > 0 and sum(one.bytes_moved for one in moving) > facts.argument_bytes


@pytest.mark.long
def test_eight_devices_share_the_slices():
    program = functools.partial(super_resolve, tiny.model(), slices=ROWS, dtype="float32")
    lowered = [program(make_mesh(shape)) for shape in ((8, 1, 1), (1, 1, 1))]
    assert lowered[0].out_info.shape == (ROWS, 32, 32, 1)
    share, whole = (compile_program(lambda x=x: x)[0].flops for x in lowered)
    assert share == pytest.approx(whole / 8, rel=0.1)


@pytest.mark.parametrize("mesh", ["1,2", "a,4,1", "1,,1"])
def test_a_mesh_that_is_none_is_named(capsys, mesh):
    with pytest.raises(SystemExit, match="2"):
        plan.main(["--config", CONFIG, f"--mesh={mesh}"])
    assert f"'{mesh}' is not three whole numbers" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_unknown_topology(capsys):
    assert plan.main(["--config", CONFIG, "--topology", "v5e:3x99"]) == 2
    assert "--topology v5e:3x99" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
def test_the_flash_kernel_and_its_gradients_compile(topology):
    mesh = make_mesh((-1, 1, 1), plan.topology_devices(topology))
    model = base.model()
    for backward in (False, True):
        program = attend(model, mesh, ROWS, "bfloat16", backward=backward)
        facts, _ = compile_program(lambda program=program: program)
        # Of the prompts of a chip, in float32.
        logits = 6464**2 * model.maskgit.heads * 4 * ROWS / mesh.size
        assert facts.temporary_bytes < logits / 4
