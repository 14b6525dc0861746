"""The token sampler against recorded reference runs, and what it promises beyond them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_case import FOLDER, GoldenCase
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from gct_jax.config import module_fields
from gct_jax.corruption.masking import gumbel_argmax
from gct_jax.errors import ConfigError
from gct_jax.interop.generatect.ctvit import ctvit_from_reference
from gct_jax.interop.generatect.maskgit import (
    maskgit_from_reference,
    token_critic_from_reference,
)
from gct_jax.models.critics import TokenCritic
from gct_jax.models.ctvit import CTViT
from gct_jax.models.maskgit import MaskGit
from gct_jax.models.token_grid import token_grid
from gct_jax.sampling import token_decoding
from gct_jax.sampling.guidance import guided, with_guidance
from gct_jax.sampling.token_decoding import DecodingPlan, StepNoise


def part(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class Recorded:
    """One sampler case with our models on its weights."""

    def __init__(self, name):
        self.case = GoldenCase(name)
        meta = self.case.meta["constructor"]
        (weights,) = [f for f in self.case.meta["weight_files"] if f.endswith(".safetensors")]
        state = load_file(FOLDER / weights)
        config, variables = maskgit_from_reference(part(state, "maskgit."))
        self.context = jnp.asarray(self.case.arrays["in__text_embeds"])
        self.context_mask = jnp.any(self.context != 0, axis=-1)
        self.apply = functools.partial(MaskGit(**module_fields(config)).apply, variables)
        self.logits_fn = self.guided(self.apply)
        self.critic_fn = None
        if "critic" in meta:
            config, variables = token_critic_from_reference(part(state, "critic."))
            critic = TokenCritic(**module_fields(config))
            self.critic_fn = self.guided(functools.partial(critic.apply, variables))
        self.ctvit = ctvit_from_reference(part(state, "ctvit."))
        grid = token_grid(meta["num_frames"], 32, 32, patch_size=8, temporal_patch_size=2)
        self.plan = DecodingPlan(grid, config.num_tokens, steps=meta["steps"])

    def guided(self, apply):
        scale = self.case.meta["constructor"]["cond_scale"]
        return jax.jit(with_guidance(apply, self.context, self.context_mask, scale))

    def noise(self, step):
        shape = (len(self.context), *self.plan.grid)
        critic = np.full(shape, np.nan, np.float32)  # the last step's scores are never used
        if "in__critic_uniforms" in self.case.arrays and step < self.plan.steps - 1:
            critic = self.case.arrays["in__critic_uniforms"][step].reshape(shape)
        tokens = self.case.arrays["in__gumbel_uniforms"][step]
        return StepNoise(tokens.reshape(*shape, self.plan.mask_id), critic)


@pytest.fixture(scope="module", params=["sampler", "sampler_critic"])
def recorded(request):
    return Recorded(request.param)


@pytest.fixture(scope="module")
def plain():
    """A one-layer MaskGit, used without its critic."""
    return Recorded("sampler_critic")


def spied_step(plan, logits_fn, critic_fn=None):
    """A compiled `decode_step` that also returns what it showed to the model, and the answer."""

    @jax.jit
    def step_fn(state, step, noise, prime_ids=None):
        shown = {}

        def spy(name, function):
            def spied(ids):
                shown[name] = (ids, function(ids))
                return shown[name][1]

            return spied

        state = token_decoding.decode_step(
            state,
            step,
            noise,
            plan,
            spy("model", logits_fn),
            critic_fn=critic_fn and spy("critic", critic_fn),
            prime_ids=prime_ids,
        )
        return state, shown

    return step_fn


def test_every_step_matches_golden(recorded):
    arrays, plan = recorded.case.arrays, recorded.plan
    assert plan.grid == tuple(arrays["out__video_patch_shape"])
    np.testing.assert_allclose(plan.temperatures(), arrays["out__temperature"], atol=1e-7)
    step_fn = spied_step(plan, recorded.logits_fn, recorded.critic_fn)
    state = token_decoding.initial_state(len(recorded.context), plan)
    shape = arrays["out__final_ids"].shape
    for step in range(plan.steps):
        noise = recorded.noise(step)
        state, shown = step_fn(state, step, noise)
        ids, logits = shown["model"]
        np.testing.assert_array_equal(ids.reshape(shape), arrays["out__model_input_ids"][step])
        masked = np.sum(np.asarray(ids) == plan.mask_id, axis=(1, 2, 3))
        np.testing.assert_array_equal(masked, arrays["out__masked_count"][step])
        drawn = gumbel_argmax(logits, noise.tokens, plan.temperatures()[step])
        np.testing.assert_array_equal(drawn.reshape(shape), arrays["out__pred_ids"][step])
        if step == 0:
            expected = arrays["out__logits_step0"]
            tolerance = recorded.case.tolerance("logits_step0")
            np.testing.assert_allclose(
                logits.reshape(expected.shape), expected, rtol=0, atol=tolerance
            )
        if step < plan.steps - 1:
            tolerance = recorded.case.tolerance("scores")
            np.testing.assert_allclose(
                state.scores.reshape(shape), arrays["out__scores"][step], rtol=0, atol=tolerance
            )
    np.testing.assert_array_equal(state.ids.reshape(shape), arrays["out__final_ids"])


def test_decoded_volume_matches_golden(recorded):
    config, variables = recorded.ctvit
    arrays = recorded.case.arrays
    ids = arrays["out__final_ids"].reshape(-1, *recorded.plan.grid)
    model = CTViT(**module_fields(config))
    volume = jax.jit(functools.partial(model.apply, method=CTViT.decode))(variables, ids)
    expected = np.moveaxis(arrays["out__video"], 1, -1)
    tolerance = recorded.case.tolerance("video")
    np.testing.assert_allclose(volume, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["6464tokens_18steps", "576tokens_18steps", "64tokens_8steps"])
def test_counts_and_temperatures_match_golden(name):
    case = GoldenCase("sampler_counts")
    (run,) = (run for run in case.meta["constructor"]["runs"] if run["name"] == name)
    grid = token_grid(run["frames"], 128, 128, patch_size=16, temporal_patch_size=2)
    plan = DecodingPlan(grid, mask_id=8, steps=run["steps"])
    arrays = {key.removesuffix(f"_{name}"): value for key, value in case.arrays.items()}
    np.testing.assert_array_equal(grid, arrays["out__patch_shape"])
    assert np.prod(grid) == arrays["out__total_tokens"]
    np.testing.assert_array_equal(plan.masked_counts(), arrays["out__masked_per_step"])
    np.testing.assert_allclose(plan.temperatures(), arrays["out__temperature_per_step"], atol=1e-7)


def sample_keys(count):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(7)))(jnp.arange(count))


def test_device_loop_and_host_loop_give_the_same_bits(plain):
    plan, keys = plain.plan, sample_keys(len(plain.context))

    @jax.jit
    def whole(keys):
        return token_decoding.decode_tokens(plain.logits_fn, keys, plan)

    @jax.jit
    def advance(state, start, stop):
        return token_decoding.decode_range(state, start, stop, keys, plan, plain.logits_fn)

    state = start = token_decoding.initial_state(len(keys), plan)
    for step in range(plan.steps):
        state = advance(state, step, step + 1)
    np.testing.assert_array_equal(state.ids, whole(keys))
    np.testing.assert_array_equal(state.ids, advance(start, 0, plan.steps).ids)
    assert jnp.all((state.ids >= 0) & (state.ids < plan.mask_id))


def by_sample_on_eight_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


def test_one_device_or_eight_give_the_same_ids(plain):
    plan = DecodingPlan(plain.plan.grid, plain.plan.mask_id, steps=4)

    @jax.jit
    def decode(keys, context):
        logits_fn = with_guidance(plain.apply, context, None, 3.0)
        return token_decoding.decode_tokens(logits_fn, keys, plan)

    keys = sample_keys(8)
    context = plain.context[:1] * jnp.arange(1.0, 9.0)[:, None, None]
    single = decode(keys, context)
    sharding = by_sample_on_eight_devices()
    sharded = decode(jax.device_put(keys, sharding), jax.device_put(context, sharding))
    assert len(sharded.sharding.device_set) == 8 and not sharded.is_fully_replicated
    np.testing.assert_array_equal(sharded, single)
    assert len(np.unique(single, axis=0)) == 8


def toy_logits(ids):
    """Logits of 16 tokens that depend on every token and on the one a frame before it."""
    table = jax.random.normal(jax.random.key(3), (17, 16))
    return table[ids] + table[jnp.roll(ids, 1, axis=1)]


TOY = DecodingPlan((2, 3, 3), mask_id=16, steps=5)


def test_noise_of_a_sample_depends_on_its_key_and_the_step_only():
    keys = sample_keys(3)
    noise = jax.jit(lambda keys, step: token_decoding.step_noise(keys, step, TOY))
    tokens, critic = map(np.asarray, noise(keys, 2))
    assert tokens.shape == (3, 2, 3, 3, 16) and critic.shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(noise(keys[::-1], 2).tokens, tokens[::-1])
    for other in (noise(keys, 3).tokens[1], tokens[0], critic[1][..., None]):
        assert np.all(np.asarray(other) != tokens[1])


def random_noise(seed):
    rng = np.random.default_rng(seed)
    shape = (2, *TOY.grid)
    return StepNoise(
        rng.random((*shape, TOY.mask_id), dtype=np.float32), rng.random(shape, dtype=np.float32)
    )


def test_prime_frames_are_seen_kept_and_matter():
    prime = jnp.arange(2 * 9).reshape(2, 1, 3, 3) % 16
    step_fn = spied_step(TOY, toy_logits, lambda ids: jnp.sin(ids))
    state = token_decoding.initial_state(2, TOY)
    for step in range(TOY.steps):
        state, shown = step_fn(state, step, random_noise(step), prime)
        np.testing.assert_array_equal(shown["model"][0][:, :1], prime)
        np.testing.assert_array_equal(shown["critic"][0][:, :1], prime)
        np.testing.assert_array_equal(shown["critic"][0][:, 1:], state.ids)
        masked = np.sum(np.asarray(shown["model"][0]) == TOY.mask_id, axis=(1, 2, 3))
        np.testing.assert_array_equal(masked, TOY.masked_counts()[step])

    @jax.jit
    def decode(prime):
        return token_decoding.decode_tokens(toy_logits, sample_keys(2), TOY, prime_ids=prime)

    ids = decode(prime)
    assert ids.shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(ids[:, :1], prime)
    assert jnp.any(ids[:, 1:] != decode((prime + 5) % 16)[:, 1:])


def test_temperature_zero_and_the_last_step_ignore_the_noise():
    cold = dataclasses.replace(TOY, temperature=0.0)
    state = token_decoding.initial_state(2, TOY)
    for plan, step, same in ((cold, 0, True), (TOY, TOY.steps - 1, True), (TOY, 0, False)):
        step_fn = spied_step(plan, toy_logits)
        first, second = (step_fn(state, step, random_noise(seed))[0].ids for seed in (0, 1))
        assert jnp.array_equal(first, second) == same


def test_critic_noise_schedules():
    def scales(name):
        return dataclasses.replace(
            TOY, steps=4, critic_noise=2.0, critic_noise_schedule=name
        ).critic_noise_scales()

    np.testing.assert_allclose(scales("fixed"), [2, 2, 2, 2])
    np.testing.assert_allclose(scales("decay"), [1.5, 1, 0.5, 0])
    np.testing.assert_allclose(scales("increase"), [0.5, 1, 1.5, 2])


def test_guidance_of_a_traced_scale_equals_two_separate_passes():
    def apply(ids, context, mask):
        text = jnp.sum(context * mask[..., None], axis=(1, 2))[:, None, None, None]
        return jnp.sin(ids) + text

    ids = jnp.arange(3 * 8).reshape(3, 2, 2, 2)
    context = jax.random.normal(jax.random.key(0), (3, 5, 4))
    mask = jnp.arange(5) < jnp.array([[5], [3], [1]])

    @jax.jit
    def run(scale):
        return with_guidance(apply, context, mask, scale)(ids)

    cond, null = apply(ids, context, mask), apply(ids, context, mask & False)
    for scale in (1.0, 4.0):
        expected = guided(null, cond, scale)
        np.testing.assert_allclose(run(scale), expected, atol=1e-5)
        static = with_guidance(apply, context, mask, scale)(ids)
        np.testing.assert_allclose(static, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [({"steps": 0}, "steps = 0"), ({"critic_noise_schedule": "up"}, "'fixed', 'decay'")],
)
def test_impossible_plans_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TOY, **options)
