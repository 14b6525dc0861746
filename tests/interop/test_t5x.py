"""T5X checkpoints in both of their shapes, made here by flax and tensorstore."""

import json
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
import tensorstore
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from golden_case import FOLDER

from gct_jax.errors import ModelFolderError
from gct_jax.interop.huggingface import t5_from_huggingface
from gct_jax.interop.t5x import t5_from_t5x, t5_to_t5x
from gct_jax.interop.zarr_arrays import read_zarr, write_zarr


@pytest.fixture(scope="module")
def encoder():
    return t5_from_huggingface(FOLDER / "t5")


def with_decoder(params):
    """Arrays of a whole T5, of which the encoder is the part to be read."""
    decoder = {"layers_0": {"mlp": {"wo": {"kernel": np.ones((3, 3), np.float32)}}}}
    return {**params, "decoder": decoder}


def write_msgpack(path, target):
    document = {"version": 3, "optimizer": {"state": {"step": np.int32(7)}, "target": target}}
    path.write_bytes(msgpack_serialize(document))
    return path


def spec(name, value, chunks):
    return {
        "driver": "zarr",
        "dtype": "float32",
        "kvstore": {"driver": "gfile", "path": f"/somewhere/else/{name}/"},
        "metadata": {
            "shape": list(value.shape),
            "chunks": list(chunks),
            "compressor": {"id": "gzip", "level": 1},
        },
    }


def write_with_tensorstore(folder, value, chunks, dtype="<f4"):
    metadata = {
        "shape": list(value.shape),
        "chunks": list(chunks),
        "dtype": dtype,
        "compressor": {"id": "gzip", "level": 1},
    }
    store = tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{folder}/"},
            "metadata": metadata,
            "create": True,
        }
    ).result()
    store.write(value.astype(store.dtype.numpy_dtype)).result()


def write_directory(folder, params):
    """Encoder matrices in zarr folders, norms inline, decoder described but not there."""
    target = {}
    folder.mkdir()
    for path, value in flatten_dict(with_decoder(params)).items():
        name = ".".join(("target", *path))
        chunks = [max(1, length // 2) for length in value.shape]
        target[path] = value if value.ndim == 1 else spec(name, value, chunks)
        if value.ndim > 1 and path[0] != "decoder":
            write_with_tensorstore(folder / name, value, chunks)
    write_msgpack(folder / "checkpoint", unflatten_dict(target))
    return folder


@pytest.fixture
def checkpoint(encoder, tmp_path):
    return write_directory(tmp_path / "checkpoint_7", encoder[1]["params"])


def test_single_file(encoder, tmp_path):
    path = write_msgpack(tmp_path / "checkpoint", with_decoder(encoder[1]["params"]))
    for source in (path, tmp_path):
        found = t5_from_t5x(source)
        assert found[0] == encoder[0]
        np.testing.assert_equal(found[1], encoder[1])


def test_folder_of_arrays_with_several_chunks(encoder, checkpoint):
    found = t5_from_t5x(checkpoint)
    assert found[0] == encoder[0]
    np.testing.assert_equal(found[1], encoder[1])


def test_export_is_read_back_and_by_tensorstore(encoder, tmp_path):
    t5_to_t5x(encoder[1], tmp_path)
    np.testing.assert_equal(t5_from_t5x(tmp_path)[1], encoder[1])
    name = "target.encoder.layers_1.mlp.wo.kernel"
    kvstore = {"driver": "file", "path": f"{tmp_path / name}/"}
    stored = tensorstore.open({"driver": "zarr", "kvstore": kvstore}).result().read().result()
    expected = encoder[1]["params"]["encoder"]["layers_1"]["mlp"]["wo"]["kernel"]
    np.testing.assert_equal(stored, expected)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "bfloat16"])
def test_chunks_that_reach_over_the_edge(tmp_path, dtype):
    value = np.arange(35, dtype=np.float32).reshape(5, 7)
    write_with_tensorstore(tmp_path / "array", value, (2, 3), dtype)
    np.testing.assert_equal(read_zarr(tmp_path / "array").astype(np.float32), value)


def test_written_chunks_are_bounded_and_read_by_tensorstore(tmp_path):
    value = np.arange(60, dtype=np.float32).reshape(12, 5)
    metadata = write_zarr(tmp_path / "array", value, largest_chunk=100)
    assert metadata["chunks"] == [4, 5]  # 80 bytes; 6 rows would be 120
    kvstore = {"driver": "file", "path": f"{tmp_path / 'array'}/"}
    stored = tensorstore.open({"driver": "zarr", "kvstore": kvstore}).result().read().result()
    np.testing.assert_equal(stored, value)


def test_what_is_not_wanted_is_not_held(encoder, tmp_path):
    megabyte = np.zeros(2**18, np.float32)
    target = with_decoder(encoder[1]["params"]) | {"decoder": {str(i): megabyte for i in range(32)}}
    path = write_msgpack(tmp_path / "checkpoint", target)
    t5_from_t5x(path)  # what JAX allocates the first time is not of interest
    tracemalloc.start()
    t5_from_t5x(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20  # of a file of 32 MiB


def stack_layers(params):
    return {"encoder": {"encoder": params["encoder"]["layers_0"]}, **params["token_embedder"]}


def one_input_layer(params):
    flat = flatten_dict(params, sep="/")
    flat = {name.replace("mlp/wi_0", "mlp/wi"): value for name, value in flat.items()}
    return unflatten_dict(flat, sep="/")


def replace(path, value):
    def change(params):
        return unflatten_dict(flatten_dict(params, sep="/") | {path: value}, sep="/")

    return change


QUERY = "encoder/layers_1/attention/query/kernel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (stack_layers, "scan_layers=True"),
        (one_input_layer, r"T5 1\.0 .*wi_0"),
        (lambda params: {"decoder": params["encoder"]}, "holds no encoder"),
        (lambda params: {"encoder": params["encoder"]}, "lacks 'token_embedder/embedding'"),
        (replace(QUERY, np.zeros((5, 32), "f")), rf"{QUERY} is \(5, 32\).*\(32, 32\)"),
        (replace("encoder/layers_0/bias", np.zeros(5, "f")), r"layers_0/bias is \(5,\).*nothing"),
        (replace(QUERY, np.full((32, 32), np.nan, "f")), rf"{QUERY}.*not finite"),
        (replace(QUERY, np.zeros((32, 32), int)), rf"{QUERY}.*type int64"),
        (
            replace("encoder/relpos_bias/rel_embedding", np.zeros((4, 16), "f")),
            "16 distance buckets",
        ),
    ],
)
def test_other_families_are_refused(encoder, tmp_path, change, message):
    params = jax.tree.map(np.asarray, encoder[1]["params"])
    path = write_msgpack(tmp_path / "checkpoint", change(params))
    with pytest.raises(ModelFolderError, match=message):
        t5_from_t5x(path)


def test_damage_is_named(encoder, checkpoint, tmp_path):
    array = checkpoint / "target.encoder.layers_0.mlp.wo.kernel"
    spare = shutil.copytree(array, tmp_path / "spare")

    def restore():
        shutil.rmtree(array)
        shutil.copytree(spare, array)

    (array / "1.0").unlink()
    with pytest.raises(ModelFolderError, match=r"wo\.kernel/1\.0"):
        t5_from_t5x(checkpoint)
    restore()
    (array / "1.0").write_bytes((array / "1.0").read_bytes()[:-9])
    with pytest.raises(ModelFolderError, match=r"cannot read the chunk .*1\.0"):
        t5_from_t5x(checkpoint)
    restore()
    header = json.loads((array / ".zarray").read_text())
    (array / ".zarray").write_text(json.dumps(header | {"compressor": {"id": "blosc"}}))
    with pytest.raises(ModelFolderError, match="compressed with 'blosc'"):
        t5_from_t5x(checkpoint)
    shutil.rmtree(array)
    with pytest.raises(ModelFolderError, match=r"cannot read .*\.zarray"):
        t5_from_t5x(checkpoint)
    index = checkpoint / "checkpoint"
    index.write_bytes(index.read_bytes()[:300])
    with pytest.raises(ModelFolderError, match="damaged or cut short"):
        t5_from_t5x(checkpoint)
    index.unlink()
    with pytest.raises(ModelFolderError, match="neither a T5X checkpoint"):
        t5_from_t5x(checkpoint)


@pytest.mark.parametrize(
    ("files", "given"),
    [
        ({"checkpoint": b'model_checkpoint_path: "model.ckpt-1000000"\n'}, "."),
        ({"checkpoint": b'model_checkpoint_path: "model.ckpt-1000000"\n'}, "checkpoint"),
        ({"model.ckpt-1000000.index": b"\0\1", "model.ckpt-1000000.meta": b"\0"}, "."),
        ({"model.ckpt-1000000.index": b"\0\1"}, "model.ckpt-1000000.index"),
        ({"model.ckpt-1000000.data-00000-of-00002": b"\0"}, "model.ckpt-1000000"),
    ],
)
def test_a_tensorflow_checkpoint_is_called_by_its_name(tmp_path, files, given):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFolderError, match=r"is a TensorFlow checkpoint .*give the T5X"):
        t5_from_t5x(tmp_path / given)
