"""What a program's text says it moves: a hand-written one, and those of the CPU compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gct_jax.sharding import make_mesh
from launch.plan.hlo import collective, instructions, received_bytes

TEXT = """HloModule jit_f, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%fused_computation (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %big = f32[8,4]{1,0} add(%p, %p)
}

%body (c: (s32[], bf16[16,4])) -> (s32[], bf16[16,4]) {
  %c = (s32[], bf16[16,4]{1,0}) parameter(0)
  %x = bf16[16,4]{1,0} get-tuple-element(%c), index=1
  %y = bf16[16,4]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[], bf16[16,4]{1,0}) tuple(%c, %y)
}

%condition (c: (s32[], bf16[16,4])) -> pred[] {
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %fusion = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(f)/add"}
  %ag = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%fusion), replica_groups=[2,4]<=[8], dimensions={0}
  %agd = f32[32,4]{1,0} all-gather-done(%ag)
  %ar = f32[8,4]{1,0} all-reduce(%fusion), replica_groups={{0,1},{2,3}}, to_apply=%add
  %rs = f32[2,4]{1,0} reduce-scatter(%fusion), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %loop = (s32[], bf16[16,4]{1,0}) while(%init), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"25"}}
  ROOT %result = f32[8,4]{1,0} copy(%ar)
}
"""  # noqa: E501


def test_bytes_turns_and_groups():
    found = {one.name: one for one in instructions(TEXT)}
    assert set(found) == {"fusion", "ag", "ar", "rs", "y", "result"}
    assert found["fusion"].bytes_moved == 2 * 128
    assert found["fusion"].source == "jit(f)/add"
    assert found["y"].times == 25 and found["ar"].times == 1
    assert received_bytes(found["ag"]) == 512 * 3 / 4
    assert received_bytes(found["ar"]) == 2 * 128 / 2
    assert received_bytes(found["rs"]) == 32 * 3
    assert received_bytes(found["y"]) == 25 * 128
    assert [collective(found[name].operation) for name in ("ag", "rs", "fusion")] == [
        "all-gather", "reduce-scatter", ""
    ]  # fmt: skip
    assert collective("all-gather-done") == ""


GATHERING = """%async_collective_fusion.1 (p: bf16[2,8], q: bf16[8,8], x: f32[4]) -> (f32[4], bf16[2,8], bf16[8,8]) {
  %p = bf16[2,8]{1,0} parameter(0)
  %q = bf16[8,8]{1,0} parameter(1)
  %g = bf16[8,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %x = f32[4]{0} parameter(2)
  %y = f32[4]{0} add(%x, %x)
  ROOT %t = (f32[4]{0}, bf16[2,8]{1,0}, bf16[8,8]{1,0}) tuple(%y, %p, %g)
}
"""  # noqa: E501
HIDDEN = f"""HloModule jit_g

{GATHERING}
{GATHERING.replace("fusion.1", "fusion.2")}
"""
HIDDEN += """
%all-reduce-scatter (input: f32[16,8]) -> f32[4,8] {
  %input = f32[16,8]{1,0} parameter(0)
  %sum = f32[16,8]{1,0} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %part = f32[4,8]{1,0} dynamic-slice(%sum), dynamic_slice_sizes={4,8}
}

ENTRY %main (a: bf16[2,8], b: bf16[8,8], x: f32[4], w: f32[16,8]) -> f32[4] {
  %a = bf16[2,8]{1,0} parameter(0)
  %b = bf16[8,8]{1,0} parameter(1)
  %x = f32[4]{0} parameter(2)
  %w = f32[16,8]{1,0} parameter(3)
  %one = (f32[4]{0}, bf16[2,8]{1,0}, bf16[8,8]{1,0}, /*index=3*/bf16[8,8]{1,0}) fusion(%a, %b, /*index=2*/%x), kind=kCustom, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {}), {3}: (1, {})}, calls=%async_collective_fusion.1
  %x2 = f32[4]{0} get-tuple-element(%one), index=0
  %a2 = bf16[2,8]{1,0} get-tuple-element(%one), index=1
  %b2 = bf16[8,8]{1,0} get-tuple-element(%one), index=2
  %two = (f32[4]{0}, bf16[2,8]{1,0}, bf16[8,8]{1,0}) fusion(%a2, %b2, %x2), kind=kCustom, output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%async_collective_fusion.2
  %part = f32[4,8]{1,0} fusion(%w), kind=kCustom, calls=%all-reduce-scatter
  ROOT %end = f32[4]{0} get-tuple-element(%two), index=0
}
"""  # noqa: E501


def test_a_collective_hidden_behind_fusions_runs_once():
    found = instructions(HIDDEN)
    assert [one.name for one in found] == ["g", "one", "two", "sum", "part"]
    gather, one, two, summed, _ = found
    assert received_bytes(gather) == 8 * 8 * 2 * 3 / 4
    assert one.bytes_moved == two.bytes_moved == 2 * 4 * 4
    assert summed.operation == "reduce-scatter"
    assert received_bytes(summed) == 3 * 4 * 8 * 4


ON_CHIP = """HloModule jit_h

ENTRY %main (a: f32[64]) -> f32[64] {
  %a = f32[64]{0:T(256)} parameter(0)
  %start = (f32[64]{0:T(256)S(1)}, f32[64]{0:T(256)}, u32[]{:S(2)}) copy-start(%a)
  %near = f32[64]{0:T(256)S(1)} copy-done(%start)
  %b = f32[64]{0:T(256)S(1)} add(%near, %near)
  %part = ((f32[64]{0:T(256)}), f32[16]{0:T(256)S(1)}, s32[]{:S(2)}) slice-start(%a)
  %quarter = f32[16]{0:T(256)S(1)} slice-done(%part)
  %moved = (f32[64]{0:T(256)}, f32[64]{0:T(256)}, u32[]{:S(2)}) copy-start(%a)
  %copy = f32[64]{0:T(256)} copy-done(%moved)
  ROOT %c = f32[64]{0:T(256)} multiply(%b, %near)
}
"""


def test_what_stays_on_the_chip_is_not_moved():
    found = {one.name: one.bytes_moved for one in instructions(ON_CHIP)}
    assert found == {"near": 256, "b": 0, "quarter": 64, "copy": 512, "c": 256}


@pytest.mark.parametrize(
    ("spec", "kind", "size"),
    [(P("fsdp"), "all-gather", 64 * 64 * 4 * 3 / 4), (P(None, "fsdp"), "all-gather", 12288)],
)
def test_a_compiled_gather(spec, kind, size):
    mesh = make_mesh((1, 4, 1), jax.devices()[:4])
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(mesh, spec))
    whole = jax.jit(lambda x: x + 1, out_shardings=NamedSharding(mesh, P()))
    moving = [one for one in instructions(whole.lower(x).compile().as_text())]
    (gather,) = [one for one in moving if collective(one.operation)]
    assert collective(gather.operation) == kind and gather.group == 4
    assert received_bytes(gather) == size


def test_a_compiled_sum_over_a_split_axis():
    mesh = make_mesh((1, 1, 8))
    a = jax.ShapeDtypeStruct((16, 64), np.float32, sharding=NamedSharding(mesh, P(None, "tensor")))
    b = jax.ShapeDtypeStruct((64, 32), np.float32, sharding=NamedSharding(mesh, P("tensor")))
    product = jax.jit(jnp.matmul, out_shardings=NamedSharding(mesh, P()))
    moving = instructions(product.lower(a, b).compile().as_text())
    (summed,) = [one for one in moving if collective(one.operation)]
    assert collective(summed.operation) == "all-reduce"
    assert received_bytes(summed) == 2 * 7 / 8 * 16 * 32 * 4
