"""Programs as shapes: what they hold follows from the shapes. With libtpu, the real compiler."""

import importlib.util

import jax
import numpy as np
import pytest

from configs import base, tiny
from gct_jax.sharding import make_mesh
from gct_jax.training.stages import make_stage
from launch import tpu_compile
from launch.tpu_programs import attend, sample_volumes, train_step, with_rows

ROWS = 8


def tree_bytes(tree):
    def size(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return 8  # two words of 32 bits
        return int(np.prod(leaf.shape)) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.long
def test_a_training_step_holds_its_state_and_its_batch():
    config = with_rows(tiny.maskgit(), ROWS, "float32")
    state = jax.eval_shape(make_stage(config).init_state, jax.random.key(0), {})
    ids = jax.ShapeDtypeStruct((ROWS, 3, 2, 2), np.int32)
    text = jax.ShapeDtypeStruct((ROWS, config.model.t5.max_length), np.int32)
    lowered = train_step(config, make_mesh((1, 1, 1)))
    facts = tpu_compile.compiled_facts(lambda: lowered, "cpu")
    assert facts["arguments_gigabytes"] * 1e9 == pytest.approx(tree_bytes((state, ids, text)), 1e-3)
    assert facts["collectives"] == {}
    assert facts["teraflops"] > 0


@pytest.mark.long
def test_eight_devices_share_the_samples():
    lowered = sample_volumes(tiny.model(), make_mesh((8, 1, 1)), ROWS, "float32")
    (volume,) = jax.tree.leaves(lowered.out_info)
    assert volume.shape == (ROWS, 5, 16, 16, 1)
    alone = sample_volumes(tiny.model(), make_mesh((1, 1, 1)), ROWS, "float32")
    share, whole = (
        tpu_compile.compiled_facts(lambda x=x: x, "cpu")["teraflops"] for x in (lowered, alone)
    )
    assert share == pytest.approx(whole / 8, rel=0.1)


def test_table():
    row = {
        "gigabytes": 3.25,
        "arguments_gigabytes": 1.5,
        "temporary_gigabytes": 2.0,
        "teraflops": 4.0,
        "moved_gigabytes": 100.0,
        "floor_seconds": 0.1221,
        "collectives": {"all-reduce": 3},
    }
    text = tpu_compile.markdown(
        {
            "topology": "v5e:2x4",
            "chip": "TPU v5 lite",
            "mesh": {"data": 2, "fsdp": 4, "tensor": 1},
            "dtype": "bfloat16",
            "rows": {"volumes": 8, "slices": 32},
            "programs": [
                {"program": "train maskgit", "predicted_seconds": 0.25, **row},
                {"program": "sample", "predicted_seconds": -2.0, **row},
                {"program": "train superres", "refused": "needs 20G of 15.75G"},
            ],
        }
    )
    assert "| train maskgit | 3.25 | 1.50 | 2.00 | 4.00 | 100.0 | 122.1 | 250.0 |" in text
    assert "| 122.1 | - | 3 all-reduce |" in text  # a negative estimate is none
    assert "| train superres | needs 20G of 15.75G |" in text


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"programs": [{}]}', '{"programs": [3]}'])
def test_a_damaged_earlier_table_is_named_and_stays(tmp_path, capsys, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    assert tpu_compile.main(["--out", str(path.with_suffix(""))]) == 2
    message = capsys.readouterr().err
    assert str(path) in message
    assert message.count("\n") == 1
    assert path.read_text() == content


@pytest.mark.parametrize("mesh", ["1,2", "a,4,1", "1,,1"])
def test_a_mesh_that_is_none_is_named(capsys, mesh):
    with pytest.raises(SystemExit, match="2"):
        tpu_compile.main([f"--mesh={mesh}"])
    assert f"'{mesh}' is not three whole numbers" in capsys.readouterr().err


def test_earlier_programs_stay_if_their_settings_are_the_same():
    def results(mesh, **gigabytes):
        rows = [{"program": name, "gigabytes": value} for name, value in gigabytes.items()]
        return {"topology": "v5e:2x4", "mesh": mesh, "programs": rows}

    earlier = results([2, 4, 1], superres=3, sample=1)
    both = tpu_compile.with_earlier(results([2, 4, 1], sample=2), earlier)
    assert both == results([2, 4, 1], sample=2, superres=3)
    other = results([8, 1, 1], sample=2)
    assert tpu_compile.with_earlier(other, earlier) == other


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_unknown_topology(capsys):
    assert tpu_compile.main(["--topology", "v5e:3x99"]) == 2
    assert "--topology v5e:3x99" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("topology", ["v5e:2x4", "v5p:2x2x1", "v6e:2x4"])
def test_the_flash_kernel_and_its_gradients_compile(topology):
    mesh = tpu_compile.tpu_mesh(topology, (-1, 1, 1))
    model = base.model()
    for backward in (False, True):
        program = attend(model, mesh, ROWS, "bfloat16", backward=backward)
        facts = tpu_compile.compiled_facts(lambda program=program: program, "")
        # Of the prompts of a chip, in float32.
        logits = 6464**2 * model.maskgit.heads * 4 * ROWS / mesh.size
        assert facts["temporary_gigabytes"] * 1e9 < logits / 4
