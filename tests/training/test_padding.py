"""Padding at the end of volumes and tokens changes no loss, no metric, no gradient, no codebook."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import quick_jit
from tiny_model import random_variables

from configs import tiny
from gct_jax.config import override
from gct_jax.errors import ConfigError
from gct_jax.random_keys import random_key, row_uniforms
from gct_jax.training import ctvit, maskgit

KEY = random_key(7)
RNG = np.random.default_rng(0)


def close(one, other, names=()):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            b, a, atol=3e-5 * max(1.0, float(np.abs(a).max(initial=0)))
        ),
        one,
        other,
    )


def test_rows_draw_for_themselves():
    short = row_uniforms(KEY, (2, 5, 3, 3))
    np.testing.assert_array_equal(row_uniforms(KEY, (4, 9, 3, 3))[:2, :5], short)
    assert len(np.unique(short)) == short.size


CTVIT_OPTIONS = [
    ["ctvit.adversarial=True", "ctvit.soft_tissue_weight=0.5", "ctvit.lung_weight=0.5"],
    ["ctvit.commitment=reference", "ctvit.adversarial=False"],
    ["model.ctvit.temporal_attention=bidirectional", "ctvit.adversarial=False"],
    ["ctvit.counterfactual_pairs=True", "ctvit.counterfactual_weight=2.0"],
]


@pytest.mark.parametrize("options", CTVIT_OPTIONS, ids=["losses", "reference", "both", "pairs"])
def test_padded_volumes(options):
    config = override(tiny.ctvit(), options)
    size, channels = config.model.volume.image_size, 1
    real = 5
    volume = RNG.uniform(-1, 1, (4, real, size, size, channels)).astype(np.float32)
    junk = RNG.uniform(-1, 1, (4, 4, size, size, channels)).astype(np.float32)
    padded = {
        "volume": jnp.concatenate([volume, junk], 1),
        "slice_mask": jnp.arange(real + 4)[None].repeat(4, 0) < real,
    }
    state = ctvit.init_state(config, KEY, {})

    @quick_jit
    def step(batch):
        loss = functools.partial(ctvit.generator_loss, state=state, config=config, key=KEY)
        (_, (metrics, out)), grads = jax.value_and_grad(
            lambda params: loss(params, batch=batch), has_aux=True
        )(state.params["ctvit"])
        mask = ctvit.padding_mask(config, batch)
        book = ctvit.update_codebook(config, state, out, KEY, mask)
        judged = {}
        if config.ctvit.adversarial:
            judged = ctvit.discriminator_step(config, state, batch, out.reconstruction, KEY)[2]
        return metrics, grads, book, judged

    alone, together = step({"volume": jnp.asarray(volume)}), step(padded)
    close(alone, together)


def test_a_layout_that_mixes_padding_in_is_refused():
    config = override(tiny.ctvit(), ["model.ctvit.temporal_peg=interleaved"])
    state = jax.eval_shape(functools.partial(ctvit.init_state, config), KEY, {})
    size = config.model.volume.image_size
    batch = {"volume": jnp.zeros((2, 5, size, size, 1)), "slice_mask": jnp.ones((2, 5), bool)}
    with pytest.raises(ConfigError, match="one depth"):
        jax.eval_shape(
            lambda params: ctvit.generator_loss(params, state, config, batch, KEY)[0],
            state.params["ctvit"],
        )


@pytest.mark.parametrize("critic", ["none", "token"])
def test_padded_tokens(critic):
    config = override(tiny.maskgit(), [f"maskgit.critic={critic}"])
    names = ["maskgit", "t5", *(["critic"] if critic != "none" else [])]
    params = {name: random_variables(config.model, name)["params"] for name in names}
    ids = RNG.integers(0, 32, (2, 3, 2, 2), dtype=np.int32)
    text = RNG.integers(1, 128, (2, 48), dtype=np.int32)
    junk = RNG.integers(0, 32, (2, 2, 2, 2), dtype=np.int32)
    mask = np.zeros((2, 5, 2, 2), bool)
    mask[:, :3] = True
    padded = {"token_ids": np.concatenate([ids, junk], 1), "token_mask": mask, "text_ids": text}

    @quick_jit
    def step(batch):
        return jax.value_and_grad(maskgit.loss_fn, has_aux=True)(
            params, {}, config, batch, KEY, 0.3
        )

    close(step({"token_ids": ids, "text_ids": text}), step(padded))


def test_embedded_text_stands_for_its_ids():
    config = override(tiny.maskgit(), ["maskgit.train_text_encoder=False"])
    params = {"maskgit": random_variables(config.model, "maskgit")["params"]}
    extra = {"t5": random_variables(config.model, "t5")["params"]}
    text_ids = RNG.integers(0, 128, (2, 48), dtype=np.int32)
    batch = {"token_ids": RNG.integers(0, 32, (2, 3, 2, 2), dtype=np.int32), "text_ids": text_ids}
    text, read = maskgit.embedded_text(params, extra, config, batch)
    embedded = {"token_ids": batch["token_ids"], "text": text, "text_mask": read}
    losses = [maskgit.loss_fn(params, extra, config, one, KEY, 0.0)[0] for one in (batch, embedded)]
    np.testing.assert_allclose(*losses, rtol=1e-6)
