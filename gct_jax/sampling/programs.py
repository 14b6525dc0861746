"""The compiled programs that turn prompts into low-resolution volumes.

A sample is computed in exactly the same shapes whether it is alone or one of many: a batch is a
loop on the device over its samples (`map_rows`), because the result of a matrix product depends in
its last bits on the shape of the whole, and one such bit can turn the choice of a token, after
which the volumes part. What a batch saves is not arithmetic but the rest: one program, one
dispatch, no waiting for the host between samples.

`variables` are those of the components by name ("t5", "maskgit", "ctvit" and "critic", if there is
one), of which a program takes what it needs. `sample_volumes` is everything in one program;
`prepare_prompts`, `token_steps` and `decode_volumes` are the same in three, for a caller who wants
to watch the steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from gct_jax.array_types import Keys, Scalar, TextIds, TokenIds, Volume
from gct_jax.components import build_component, joined_variables
from gct_jax.config import ModelConfig
from gct_jax.models.maskgit import MaskGit
from gct_jax.sampling.guidance import with_guidance
from gct_jax.sampling.token_decoding import (
    DecodingPlan,
    DecodingState,
    decode_range,
    initial_state,
)


class Program(NamedTuple):
    """What the programs are compiled for; static and hashable.

    dtype: of the computation, "float32" or "bfloat16". with_null: False leaves out the null branch
    of guidance, for weight 1.
    """

    config: ModelConfig
    plan: DecodingPlan
    dtype: str = "float32"
    with_null: bool = True

    def part(self, name: str) -> Any:
        """The module of one component."""
        return build_component(self.config, name, jnp.dtype(self.dtype))


class Prompts(NamedTuple):
    """Texts as the networks read them, computed once for all steps and slices.

    embeddings: float32 [batch, length, dim]. mask: bool [batch, length].
    keys: of MaskGIT's cross attention, a tree of arrays [batch, ...].
    """

    embeddings: jax.Array
    mask: jax.Array
    keys: Any


def map_rows(fn: Callable[[Any], Any], rows: PyTree, count: jax.Array | int) -> PyTree:
    """`fn` of the first `count` entries along the leading axis of a tree, one after the other.

    `count` may be traced: rows that only fill up a batch then cost nothing. Their results are 0.
    """
    size = jax.tree.leaves(rows)[0].shape[0]

    def row(i: jax.Array | int) -> Any:
        return jax.tree.map(lambda leaf: leaf[i], rows)

    def body(i: jax.Array, results: PyTree) -> PyTree:
        return jax.tree.map(lambda all_, one: all_.at[i].set(one), results, fn(row(i)))

    shapes = jax.eval_shape(lambda: fn(row(0)))
    results = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, results)


@functools.partial(jax.jit, static_argnames="program")
def prepare_prompts(
    variables: dict[str, PyTree], text_ids: TextIds, count: int | Scalar, *, program: Program
) -> Prompts:
    """Text ids int32 [batch, length], 0 where padded."""
    return map_rows(functools.partial(_prepare, variables, program), text_ids, count)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def token_steps(
    variables: dict[str, PyTree],
    state: DecodingState,
    start: int | Scalar,
    stop: int | Scalar,
    count: int | Scalar,
    keys: jax.Array,
    prompts: Prompts,
    guidance: float | Scalar,
    *,
    program: Program,
) -> DecodingState:
    """MaskGIT's decoding steps start .. stop-1, in place of `state`, which is used up.

    One executable serves all bounds, counts and guidance weights.

    Args:
      keys: typed random keys [batch].
    """

    bounds = (start, stop, guidance)

    def steps(row: tuple[DecodingState, jax.Array, Prompts]) -> DecodingState:
        return _token_steps(variables, program, row, bounds)

    return map_rows(steps, (state, keys, prompts), count)


@functools.partial(jax.jit, static_argnames="program")
def decode_volumes(
    variables: dict[str, PyTree], token_ids: TokenIds, count: int | Scalar, *, program: Program
) -> Volume:
    """Token ids [batch, t, h, w] -> volumes [batch, depth, height, width, channels] in [-1, 1]."""
    return map_rows(functools.partial(_decode, variables, program), token_ids, count)


@functools.partial(jax.jit, static_argnames="program")
def sample_volumes(
    variables: dict[str, PyTree],
    text_ids: TextIds,
    keys: Keys,
    count: int | Scalar,
    guidance: float | Scalar,
    *,
    program: Program,
) -> tuple[Prompts, TokenIds, Volume]:
    """All of the above in one program.

    Args:
      text_ids: int32 [batch, length]. keys: typed random keys [batch].

    Returns:
      the prompts, the token ids [batch, t, h, w] and the volumes [batch, depth, height, width,
      channels].
    """

    def sample(row: tuple) -> tuple:
        ids, key = row
        prompt = _prepare(variables, program, ids)
        state = jax.tree.map(lambda leaf: leaf[0], initial_state(1, program.plan))
        bounds = (0, program.plan.steps, guidance)
        tokens = _token_steps(variables, program, (state, key, prompt), bounds).ids
        return prompt, tokens, _decode(variables, program, tokens)

    return map_rows(sample, (text_ids, keys), count)


def _alone(tree: PyTree) -> PyTree:
    """A sample as a batch of one."""
    return jax.tree.map(lambda leaf: leaf[None], tree)


def _prepare(variables: dict[str, PyTree], program: Program, text_ids: jax.Array) -> Prompts:
    ids = text_ids[None]
    text = program.part("t5").apply(variables["t5"], ids)
    maskgit = program.part("maskgit")
    keys = maskgit.apply(variables["maskgit"], text, method=MaskGit.context_keys)
    prompts = Prompts(text.astype(jnp.float32), ids > 0, keys)
    return jax.tree.map(lambda leaf: leaf[0], prompts)


def _token_steps(
    variables: dict[str, PyTree],
    program: Program,
    row: tuple[DecodingState, jax.Array, Prompts],
    bounds: tuple[Any, Any, Any],
) -> DecodingState:
    """Steps of one sample. bounds: first step, the one after the last, guidance weight."""
    state, keys, prompts = _alone(row)
    start, stop, guidance = bounds
    apply = functools.partial(program.part("maskgit").apply, variables["maskgit"])
    weight = guidance if program.with_null else 1
    logits_fn = with_guidance(apply, prompts.keys, prompts.mask, weight)
    critic_fn = None
    if program.config.critic is not None:
        weights = joined_variables(program.config, "critic", variables)
        judge = functools.partial(program.part("critic").apply, weights)
        critic_fn = with_guidance(judge, prompts.embeddings, prompts.mask, weight)
    state = decode_range(state, start, stop, keys, program.plan, logits_fn, critic_fn=critic_fn)
    return jax.tree.map(lambda leaf: leaf[0], state)


def _decode(variables: dict[str, PyTree], program: Program, token_ids: jax.Array) -> jax.Array:
    ctvit = program.part("ctvit")
    volume = ctvit.apply(variables["ctvit"], token_ids[None], method="decode")
    return jnp.clip(volume[0], -1.0, 1.0)
