"""The cascade against the same stages run apart, and how slices are counted."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import quick_compilation, random_variables, save_tiny_model, tiny_config

from gct_jax.components import build_component, present_components
from gct_jax.config import CriticConfig, SamplingConfig, module_fields
from gct_jax.errors import ConfigError, InputError, ModelFolderError
from gct_jax.kernels.portions import CPU_BYTES, batches, best_dtype, pixels_per_batch
from gct_jax.model_folder import load_model, save_model
from gct_jax.models.critics import SelfCritic, TokenCritic
from gct_jax.models.ctvit import CTViT
from gct_jax.models.maskgit import MaskGit
from gct_jax.sampling.cascade import (
    fitting_slices,
    generate_volumes,
    require_generator,
)
from gct_jax.sampling.guidance import with_guidance
from gct_jax.sampling.settings import Settings
from gct_jax.sampling.token_decoding import DecodingPlan, decode_tokens

SETTINGS = Settings(
    slices=5,
    steps=3,
    temperature=0.9,
    guidance=2.0,
    superres_steps=2,
    superres_guidance=1.0,
    superres_solver="ancestral",
    superres_noise_correlation_mm=20.0,
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


def generate(model, text_ids, seed=7, **changes):
    (made,) = generate_volumes(model, [text_ids], [seed], dataclasses.replace(SETTINGS, **changes))
    return made


@pytest.fixture(scope="module")
def generated(model, text_ids):
    return generate(model, text_ids)


def test_tokens_and_low_resolution_equal_the_stages_run_apart(model, text_ids):
    """One device loop over all steps and plain `apply` calls, against the cascade's host loop."""
    config = model.config
    padded = np.pad(text_ids, (0, 48 - len(text_ids)))[None]
    text = jax.jit(build_component(config, "t5").apply)(model.variables("t5"), padded)
    maskgit = build_component(config, "maskgit")
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
    decode = jax.jit(functools.partial(build_component(config, "ctvit").apply, method=CTViT.decode))
    volume = decode(model.variables("ctvit"), ids)
    expected = np.clip(volume[0, ..., 0], -1, 1)
    np.testing.assert_allclose(result.volume, expected, rtol=0, atol=1e-5)
    assert result.spacing_mm == (9.0, 5.0, 5.0)


@pytest.mark.parametrize("kind", ["token", "self"])
def test_a_critic_judges_all_tokens_with_the_guidance_of_maskgit(model, text_ids, tmp_path, kind):
    config = model.config
    critic = CriticConfig(**dataclasses.asdict(config.maskgit), kind=kind)
    with_critic = dataclasses.replace(config, critic=critic)
    names = present_components(config)
    variables = {name: model.variables(name) for name in names}
    variables["critic"] = random_variables(with_critic, "critic", seed=5)
    save_model(
        tmp_path / "model",
        with_critic,
        variables,
        model.tokenizer.model_bytes,
        license_text="test",
    )
    opened = load_model(tmp_path / "model")
    noise = {"critic_noise": 0.3, "critic_noise_schedule": "fixed"}
    made = generate(opened, text_ids, superres=False, **noise)

    padded = np.pad(text_ids, (0, 48 - len(text_ids)))[None]
    text = jax.jit(build_component(config, "t5").apply)(variables["t5"], padded)
    maskgit = MaskGit(**module_fields(config.maskgit))
    judge = SelfCritic(maskgit) if kind == "self" else TokenCritic(**module_fields(critic))
    params = variables["critic"]["params"]
    if kind == "self":
        params = {**params, "maskgit": variables["maskgit"]["params"]}
    plan = DecodingPlan((3, 2, 2), 32, 3, 0.9, **noise)

    @jax.jit
    def sample(weights, critic_weights):
        predict = functools.partial(maskgit.apply, weights)
        score = functools.partial(judge.apply, {"params": critic_weights})
        return decode_tokens(
            with_guidance(predict, text, padded > 0, 2.0),
            jax.random.fold_in(jax.random.key(7), 0)[None],
            plan,
            critic_fn=with_guidance(score, text, padded > 0, 2.0),
        )

    np.testing.assert_array_equal(made.token_ids, sample(variables["maskgit"], params)[0])
    without = generate(model, text_ids, superres=False)
    assert not np.array_equal(made.token_ids, without.token_ids)


def test_same_seed_same_bits(model, text_ids, generated):
    again = generate(model, text_ids)
    np.testing.assert_array_equal(again.volume, generated.volume)
    other = generate(model, text_ids, seed=8)
    assert not np.array_equal(other.token_ids, generated.token_ids)


@pytest.fixture(scope="module")
def mixed_batch(model, text_ids):
    """Two prompts and two seeds, in a batch that has room for one more."""
    other = model.tokenizer.encode("20 years old male: Large left.", 48).ids
    return [(other, 3), (text_ids, 7), (text_ids, 8)]


@pytest.mark.parametrize("stepwise", [True, False])
def test_a_volume_does_not_depend_on_its_batch_or_on_being_watched(
    model, generated, mixed_batch, stepwise
):
    """One program or a loop on the host, alone or in a batch that is not full: the same bits."""
    recorder = Recorder()
    texts, seeds = zip(*mixed_batch, strict=True)
    made = generate_volumes(model, texts, seeds, SETTINGS, recorder, room=4, stepwise=stepwise)
    assert len(made) == 3
    np.testing.assert_array_equal(made[1].token_ids, generated.token_ids)
    np.testing.assert_allclose(made[1].volume, generated.volume, rtol=0, atol=1e-5)
    assert not np.array_equal(made[2].token_ids, made[1].token_ids)
    assert not np.array_equal(made[0].token_ids, made[1].token_ids)
    assert recorder.calls[-1] == ("superres", 15, 15)
    watched = [done for stage, done, _ in recorder.calls if stage == "tokens"]
    assert watched == ([0, 1, 2, 3] if stepwise else [0, 3])


def test_bfloat16_computes_nearly_the_same_and_float32_is_the_cpu_default(
    model, text_ids, generated
):
    """Tokens part after the first rounding that matters, so only the last stage is compared."""
    assert best_dtype() == "float32"
    low = generate(model, text_ids, steps=1, guidance=1.0, superres=False, dtype="bfloat16")
    assert low.volume.dtype == np.float32
    exact = generate(model, text_ids, steps=1, guidance=1.0, superres=False)
    same = low.token_ids == exact.token_ids
    assert same.mean() > 0.5
    assert not np.array_equal(low.volume, exact.volume)


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
    generate_volumes(model, [text_ids], [7], SETTINGS, recorder)
    tokens = [call for call in recorder.calls if call[0] == "tokens"]
    assert tokens == [("tokens", step, 3) for step in range(4)]
    slices = [call[1] for call in recorder.calls if call[0] == "superres"]
    assert slices == sorted(slices)
    assert (slices[0], slices[-1]) == (0, 5)


def test_missing_components(model):
    config = dataclasses.replace(tiny_config(), superres=None, diffusion=None)
    require_generator(config, superres=False)
    with pytest.raises(ModelFolderError, match=r"no component 'superres'; .*, --no-superres\)"):
        require_generator(config, superres=True)
    with pytest.raises(ModelFolderError, match="no component 't5'"):
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


def test_depth_of_the_noise_must_not_be_negative():
    with pytest.raises(ConfigError, match=r"superres_noise_correlation_mm = -1\.0 must be a"):
        SamplingConfig(superres_noise_correlation_mm=-1.0)


@given(st.integers(1, 300), st.integers(0, 400))
def test_batches_of_slices_are_even_and_bounded(depth, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax.default_backend", lambda: "gpu")
        batch, at_once = batches(depth, most)
    assert at_once == 1
    assert 1 <= batch <= max(1, most)
    count = -(-depth // batch)
    assert batch * count - depth < count  # fewer idle places than batches


@pytest.mark.parametrize("most, cores, expected", [(0, 8, 1), (3, 8, 3), (8, 2, 2), (8, 1, 1)])
def test_a_cpu_takes_a_slice_per_core_that_fits(monkeypatch, most, cores, expected):
    monkeypatch.setattr("gct_jax.kernels.portions.usable_cores", lambda: cores)
    assert batches(33, most) == (1, expected)


@given(st.integers(8, 512))
def test_wider_networks_take_fewer_pixels(dim):
    assert pixels_per_batch(dim) >= pixels_per_batch(dim + 1)
    assert pixels_per_batch(dim) * dim * 128 <= CPU_BYTES
    assert pixels_per_batch(16) // 256**2 == 8
