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
