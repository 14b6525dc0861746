"""Bounds of a step, ranking of meshes, and the page, in closed form."""

import dataclasses

import jax
import pytest

from configs import tiny
from gct_jax.chips import CHIPS
from gct_jax.sharding import make_mesh
from launch.plan.hlo import Instruction
from launch.plan.meshes import candidate, mesh_shapes, ranked
from launch.plan.page import Row, movers, page
from launch.plan.programs import abstract_state
from launch.plan.roofline import Facts, Refused, Seconds

CHIP = CHIPS["TPU v5 lite"]
FACTS = Facts(
    held_bytes=8e9,
    argument_bytes=1e9,
    temporary_bytes=7e9,
    flops=197e11,
    moved_bytes=163.8e9,
    counted_bytes=300e9,
    collectives={"all-gather": (12, 3e10), "all-reduce": (2, 0.0)},
    compile_seconds=3.0,
)


def test_the_largest_of_the_three_bounds_a_step():
    seconds = FACTS.seconds(CHIP)
    assert seconds == pytest.approx((0.1, 0.2, 0.3))  # 100 GB/s of a ring: half of 200
    assert (seconds.step, seconds.bound) == (pytest.approx(0.3), "network")
    assert seconds.utilisation == pytest.approx(1 / 3)
    assert seconds.weak_scaling == pytest.approx(2 / 3)
    assert seconds.weak_scaling_alone == pytest.approx(2 / 5)
    local = Seconds(0.2, 0.1, 0.05)
    assert (local.bound, local.weak_scaling) == ("compute", 1)


def test_meshes_are_all_factorisations():
    assert set(mesh_shapes(4)) == {(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 4, 1), (1, 2, 2), (1, 1, 4)}


def test_what_meshes_hold_and_receive():
    config = tiny.maskgit()
    state, devices = abstract_state(config), jax.devices()
    parameters = sum(leaf.size * 4 for leaf in jax.tree.leaves(state.params))
    data = candidate(config, state, make_mesh((8, 1, 1)))
    assert data.received_bytes == pytest.approx(2 * parameters * 7 / 8)
    sharded = candidate(config, state, make_mesh((1, 8, 1)))
    assert sharded.received_bytes == pytest.approx(3 * parameters * 7 / 8)
    half = candidate(dataclasses.replace(config, dtype="bfloat16"), state, make_mesh((1, 8, 1)))
    assert half.received_bytes == pytest.approx(2 * parameters * 7 / 8)
    assert sharded.state_bytes < data.state_bytes
    best = ranked(config, state, devices, CHIP)
    fitting = [one.received_bytes for one in best]
    assert fitting == sorted(fitting)  # all fit
    assert all(config.loop.batch_size % (one.shape[0] * one.shape[1]) == 0 for one in best)
    little = CHIP._replace(memory_bytes=2 * min(one.state_bytes for one in best) + 1)
    room = ranked(config, state, devices, little)[0]
    assert room.state_bytes <= little.memory_bytes / 2


def test_the_page_shows_its_arithmetic():
    rows = [
        Row("train maskgit", (2, 4, 1), 8, FACTS),
        Row("train ctvit", (8, 1, 1), 8, Refused("needs 20G of 15.75G")),
    ]
    text = page("base on v5e:2x4", "python -m launch.plan", "TPU v5 lite", CHIP, 8, rows, 1.2)
    assert (
        "| train maskgit | 2 x 4 x 1 | 8 | 8.00 of 17.2 | 19.70 | 163.8 | 300.0 | 30.00 | 100.0 | "
        "200.0 | 300.0 | 300.0 | network | 33 % | 67 % | 40 % | 12 all-gather (30.00 GB), "
        "2 all-reduce (0.00 GB) | 0.80 |"
    ) in text
    assert "| train ctvit | 8 x 1 x 1 | 8 | needs 20G of 15.75G |" in text
    assert "197 TFLOP/s" in text and "819 GB/s" in text and "has 100" in text
    assert "dollars" not in page("t", "c", "TPU v5 lite", CHIP, 8, rows)


def test_movers_are_the_largest_and_their_sums():
    moving = [
        Instruction("a", "fusion", "f32[8]", 1e9, 1, 1, "jit(f)/dot"),
        Instruction("b", "copy", "f32[8]", 2e8, 25, 1, "jit(f)/dot"),
        Instruction("c", "fusion", "f32[8]", 3e9, 1, 1, ""),
    ]
    lines = movers(moving, 2).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["5.00", "3.00"]
    assert "| 6.0 | 26 | `dot` |" in lines
