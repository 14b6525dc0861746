"""The cascade against the same stages run apart, and how slices are counted."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import quick_compilation, save_tiny_model, tiny_config

from gct_jax.errors import InputError, ModelFolderError
from gct_jax.model_folder import load_model
from gct_jax.models.ctvit import CTViT
from gct_jax.parts import build_part
from gct_jax.sampling.cascade import (
    PIXELS_PER_BATCH,
    Settings,
    batch_size,
    fitting_slices,
    generate_volume,
    require_generator,
)
from gct_jax.sampling.token_decoding import DecodingPlan, decode_tokens, with_guidance

SETTINGS = Settings(
    seed=7,
    slices=5,
    steps=3,
    temperature=0.9,
    guidance=2.0,
    superres_steps=2,
    superres_guidance=1.0,
    superres_solver="ancestral",
)


@pytest.fixture(scope="module", autouse=True)
def compilation():
    with quick_compilation():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def text_ids(model):
    return model.tokenizer.encode("58 years old female: Cardiomegaly.", 48).ids


class Recorder:
    def __init__(self):
        self.calls = []

    def __call__(self, stage, done, total):
        self.calls.append((stage, done, total))


def generate(model, text_ids, **changes):
    return generate_volume(model, text_ids, SETTINGS._replace(**changes), Recorder())


@pytest.fixture(scope="module")
def generated(model, text_ids):
    return generate(model, text_ids)


def test_tokens_and_low_resolution_equal_the_stages_run_apart(model, text_ids):
    """One device loop over all steps and plain `apply` calls, against the cascade's host loop."""
    config = model.config
    padded = np.pad(text_ids, (0, 48 - len(text_ids)))[None]
    text = jax.jit(build_part(config, "t5").apply)(model.variables("t5"), padded)
    maskgit = build_part(config, "maskgit")
    plan = DecodingPlan(grid=(3, 2, 2), mask_id=32, steps=3, temperature=0.9)
    key = jax.random.fold_in(jax.random.key(7), 0)

    @jax.jit
    def sample(variables):
        def apply(*inputs):
            return maskgit.apply(variables, *inputs)

        return decode_tokens(with_guidance(apply, text, padded > 0, 2.0), key[None], plan)

    ids = sample(model.variables("maskgit"))
    result = generate(model, text_ids, superres=False)
    np.testing.assert_array_equal(result.token_ids, ids[0])
    decode = jax.jit(functools.partial(build_part(config, "ctvit").apply, method=CTViT.decode))
    volume = decode(model.variables("ctvit"), ids)
    expected = np.clip(volume[0, ..., 0], -1, 1)
    np.testing.assert_allclose(result.volume, expected, rtol=0, atol=1e-5)
    assert result.spacing_mm == (9.0, 5.0, 5.0)


def test_same_seed_same_bits(model, text_ids, generated):
    again = generate(model, text_ids)
    np.testing.assert_array_equal(again.volume, generated.volume)
    other = generate(model, text_ids, seed=8)
    assert not np.array_equal(other.token_ids, generated.token_ids)


def test_output_geometry(generated):
    assert generated.volume.shape == (5, 32, 32)
    assert generated.volume.dtype == np.float32
    assert generated.spacing_mm == (9.0, 2.5, 2.5)
    assert np.abs(generated.volume).max() <= 1
    assert set(generated.seconds) == {"text", "tokens", "decode", "superres"}


def test_text_and_guidance_matter(model, text_ids, generated):
    other_text = model.tokenizer.encode("20 years old male: Large left.", 48).ids
    assert not np.array_equal(generate(model, other_text).token_ids, generated.token_ids)
    unguided = generate(model, text_ids, guidance=1.0, superres=False)
    barely = generate(model, text_ids, guidance=1.0 + 1e-6, superres=False)
    np.testing.assert_array_equal(unguided.token_ids, barely.token_ids)
    assert not np.array_equal(unguided.token_ids, generated.token_ids)


def test_without_guidance_weight_the_text_is_ignored(model, text_ids):
    other_text = model.tokenizer.encode("20 years old male: Large left.", 48).ids
    first = generate(model, text_ids, guidance=0.0, superres=False)
    second = generate(model, other_text, guidance=0.0, superres=False)
    np.testing.assert_array_equal(first.token_ids, second.token_ids)


def test_progress_reaches_the_end(model, text_ids):
    recorder = Recorder()
    generate_volume(model, text_ids, SETTINGS, recorder)
    tokens = [call for call in recorder.calls if call[0] == "tokens"]
    assert tokens == [("tokens", step, 3) for step in range(4)]
    slices = [call[1] for call in recorder.calls if call[0] == "superres"]
    assert slices == sorted(slices)
    assert (slices[0], slices[-1]) == (0, 5)


def test_missing_parts(model):
    config = dataclasses.replace(tiny_config(), unet=None, diffusion=None)
    require_generator(config, superres=False)
    with pytest.raises(ModelFolderError, match="no part 'superres'; try --no-superres"):
        require_generator(config, superres=True)
    with pytest.raises(ModelFolderError, match="no part 't5'"):
        require_generator(dataclasses.replace(config, t5=None), superres=False)


@given(st.integers(1, 11))
def test_slices_are_rounded_up_to_the_next_tiling(asked):
    fitting = fitting_slices(tiny_config(), asked)
    assert asked <= fitting <= asked + 1
    assert fitting % 2 == 1


@pytest.mark.parametrize("asked, message", [(0, "at least 1"), (12, "at most 11"), (99, "99 sl")])
def test_impossible_slice_counts(asked, message):
    with pytest.raises(InputError, match=message):
        fitting_slices(tiny_config(), asked)


@given(st.integers(1, 300), st.sampled_from([64, 256, 512, 2048]))
def test_batches_of_slices_are_even_and_bounded(depth, image_size):
    batch = batch_size(depth, image_size)
    assert batch == 1 or batch * image_size**2 <= PIXELS_PER_BATCH
    batches = -(-depth // batch)
    assert batch * batches - depth < batches  # fewer idle places than batches
