"""Parallel decoding of tokens with MaskGIT (Chang et al. 2022, section 3.2), guided by text.

Of N new tokens, step s = 0 .. S-1 masks

  (1) k_s = max(1, round_half_even(N cos(pi s / 2S)))

those with the highest scores (all in step 0, where every score is 0), predicts them, and draws

  (2) x_i = argmax(logits_i / tau_s + gumbel_i),  tau_s = tau (S - 1 - s) / S

for the masked positions. The logits are guided by the text (`gct_jax.sampling.guidance`).

Scores for the next step say how doubtful a token is. Without a critic an unmasked token stays:

  (3) score_i = 1 - softmax(logits_i)[x_i] if it was masked in this step, else -10^4.

A critic judges all tokens anew, with noise that by default fades:

  (4) score_i = critic_i + K a_s (u_i - 1/2),  a_s = 1, (S - 1 - s) / S or (s + 1) / S.

All functions are pure. `decode_tokens` is the whole loop; for a progress bar compile `decode_range`
once with traced bounds and call it for one step after the other.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from gct_jax.array_types import Array, Keys, TokenIds
from gct_jax.config import CRITIC_NOISE_SCHEDULES
from gct_jax.corruption.masking import gumbel_argmax, smallest
from gct_jax.ranges import RANGE, Checked, Range, choice, number

UNMASKED_SCORE = -1e4  # below every score of a masked token, which lies in [0, 1]

TokenFn = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class DecodingPlan(Checked):
    """How to decode; static and hashable, so it can be a static argument of `jax.jit`.

    grid: (time, height, width) of the new tokens, without prime frames.
    mask_id: the id of a masked token; equals the number of tokens in the vocabulary.
    steps: S. temperature: tau of equation (2).
    critic_noise, critic_noise_schedule: K and a_s of equation (4): "fixed", "decay", "increase".
    """

    grid: tuple[int, int, int]
    mask_id: int = dataclasses.field(metadata={RANGE: Range(least=1)})
    steps: int = number(18, least=1)
    temperature: float = number(0.9, least=0)
    critic_noise: float = number(1.0, least=0)
    critic_noise_schedule: str = choice("decay", CRITIC_NOISE_SCHEDULES)

    def masked_counts(self) -> np.ndarray:
        """Equation (1), int32 [steps]; in float32 like the reference, which decides ties."""
        progress = (np.arange(self.steps) / self.steps).astype(np.float32)
        ratio = np.cos(progress * np.float32(np.pi / 2))
        total = np.float32(np.prod(self.grid))
        return np.maximum(1, np.round(total * ratio)).astype(np.int32)

    def temperatures(self) -> np.ndarray:
        """tau_s of equation (2), float32 [steps]."""
        return (self.temperature * self._fading()).astype(np.float32)

    def critic_noise_scales(self) -> np.ndarray:
        """K a_s of equation (4), float32 [steps]."""
        shapes = {
            "fixed": np.ones(self.steps),
            "decay": self._fading(),
            "increase": np.arange(1, self.steps + 1) / self.steps,
        }
        return (self.critic_noise * shapes[self.critic_noise_schedule]).astype(np.float32)

    def _fading(self) -> np.ndarray:
        return np.arange(self.steps - 1, -1, -1) / self.steps


class DecodingState(NamedTuple):
    """Carry of the loop: ids int32 and scores float32, both [batch, time, height, width]."""

    ids: jax.Array
    scores: jax.Array


class StepNoise(NamedTuple):
    """U[0, 1) draws of a step: tokens [batch, time, height, width, vocabulary], critic without
    the last axis."""

    tokens: jax.Array
    critic: jax.Array


def initial_state(batch: int, plan: DecodingPlan) -> DecodingState:
    """Everything masked: step 0 reads neither the ids nor, as all are equal, the scores."""
    shape = (batch, *plan.grid)
    return DecodingState(jnp.full(shape, plan.mask_id, jnp.int32), jnp.zeros(shape))


def step_noise(keys: Keys, step: jax.Array | int, plan: DecodingPlan) -> StepNoise:
    """Noise of one step, from `fold_in(key, step)` of each sample's own key.

    A sample's noise depends on nothing but its key and the step: neither on the other samples nor
    on how many devices share the batch.

    Args:
      keys: typed keys [batch].
    """

    def of_sample(key: jax.Array) -> StepNoise:
        shape = (*plan.grid, plan.mask_id + 1)  # one draw for both: random bits compile slowly
        draws = jax.random.uniform(jax.random.fold_in(key, step), shape)
        return StepNoise(draws[..., :-1], draws[..., -1])

    return jax.vmap(of_sample)(keys)


def decode_step(
    state: DecodingState,
    step: jax.Array | int,
    noise: StepNoise,
    plan: DecodingPlan,
    logits_fn: TokenFn,
    *,
    critic_fn: TokenFn | None = None,
    prime_ids: Int[Array, "batch prime_t h w"] | None = None,
) -> DecodingState:
    """One step: mask the most doubtful tokens, predict them, draw, score.

    Args:
      step: s, a scalar that may be traced.
      logits_fn: ids [batch, T, height, width] -> logits [batch, T, height, width, vocabulary].
      critic_fn: ids -> score "this token is fake" [batch, T, height, width].
      prime_ids: known tokens [batch, prime_time, height, width] that precede the new ones: the
        functions see T = prime_time + time frames; they are never masked.
    """
    prime_time = 0 if prime_ids is None else prime_ids.shape[1]

    def with_prime(ids: jax.Array) -> jax.Array:
        return ids if prime_ids is None else jnp.concatenate([prime_ids, ids], axis=1)

    masked = smallest(-state.scores, jnp.asarray(plan.masked_counts())[step])
    seen_ids = jnp.where(masked, plan.mask_id, state.ids)  # [batch, time, height, width]
    logits = logits_fn(with_prime(seen_ids))[:, prime_time:].astype(jnp.float32)
    drawn = gumbel_argmax(logits, noise.tokens, jnp.asarray(plan.temperatures())[step])
    ids = jnp.where(masked, drawn, state.ids)
    if critic_fn is None:
        chosen = jnp.take_along_axis(jax.nn.softmax(logits), ids[..., None], axis=-1)[..., 0]
        return DecodingState(ids, jnp.where(masked, 1.0 - chosen, UNMASKED_SCORE))
    scores = critic_fn(with_prime(ids))[:, prime_time:].astype(jnp.float32)
    noise_scale = jnp.asarray(plan.critic_noise_scales())[step]
    return DecodingState(ids, scores + noise_scale * (noise.critic - 0.5))


def decode_range(
    state: DecodingState,
    start: jax.Array | int,
    stop: jax.Array | int,
    keys: jax.Array,
    plan: DecodingPlan,
    logits_fn: TokenFn,
    *,
    critic_fn: TokenFn | None = None,
    prime_ids: jax.Array | None = None,
) -> DecodingState:
    """Steps start .. stop-1 as one device loop. The bounds may be traced: one executable then
    serves the whole loop and a host loop of single steps alike. Arguments as `decode_step`."""

    def body(step: jax.Array, carry: DecodingState) -> DecodingState:
        noise = step_noise(keys, step, plan)
        return decode_step(
            carry, step, noise, plan, logits_fn, critic_fn=critic_fn, prime_ids=prime_ids
        )

    return jax.lax.fori_loop(start, stop, body, state)


def decode_tokens(
    logits_fn: TokenFn,
    keys: Keys,
    plan: DecodingPlan,
    *,
    critic_fn: TokenFn | None = None,
    prime_ids: Int[Array, "batch prime_t h w"] | None = None,
) -> TokenIds:
    """Decode a batch from nothing (or from prime frames) to token ids.

    Call it under `jax.jit`, with the weights that `logits_fn` uses as arguments of that function.

    Args:
      logits_fn, critic_fn, prime_ids: as `decode_step`.
      keys: typed random keys [batch], one per sample.

    Returns:
      int32 [batch, prime_time + time, height, width], the prime frames in front.
    """
    state = decode_range(
        initial_state(len(keys), plan),
        0,
        plan.steps,
        keys,
        plan,
        logits_fn,
        critic_fn=critic_fn,
        prime_ids=prime_ids,
    )
    return state.ids if prime_ids is None else jnp.concatenate([prime_ids, state.ids], axis=1)
