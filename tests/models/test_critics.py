"""Critics against recorded reference outputs."""

import jax
import numpy as np
import pytest
from golden_case import FOLDER, GoldenCase
from safetensors.numpy import load_file

from gct_jax.config import module_fields
from gct_jax.corruption import masking
from gct_jax.interop.generatect.maskgit import (
    self_critic_from_reference,
    token_critic_from_reference,
)
from gct_jax.models.critics import SelfCritic, TokenCritic
from gct_jax.models.maskgit import MaskGit
from gct_jax.sampling.guidance import guided


def token_critic():
    config, variables = token_critic_from_reference(
        load_file(FOLDER / "maskgit_train_critic.safetensors")
    )
    return TokenCritic(**module_fields(config), mask_peg=False), variables


def self_critic():
    config, variables = self_critic_from_reference(load_file(FOLDER / "critics_self.safetensors"))
    return SelfCritic(MaskGit(**module_fields(config), mask_peg=False)), variables


@pytest.mark.parametrize("build", [token_critic, self_critic])
def test_scores_match_golden(build):
    case = GoldenCase("critics")
    ids, context = case.arrays["in__ids"], case.arrays["in__context"]
    text_mask = case.arrays["in__text_mask"]
    critic, variables = build()
    apply = jax.jit(critic.apply)

    def check(name, actual):
        name = f"{build.__name__}_{name}"
        expected = case.arrays[f"out__{name}"].reshape(ids.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=case.tolerance(name))

    everything = np.ones(ids.shape, bool)
    cond = apply(variables, ids, context, text_mask, everything)
    null = apply(variables, ids, context, text_mask & False, everything)
    assert cond.dtype == np.float32
    check("logits", cond)
    check("null", null)
    check("cond_scale_3", guided(null, cond, 3.0))
    video_mask = case.arrays["in__video_mask"].reshape(ids.shape)
    check("video_mask", apply(variables, ids, context, text_mask, video_mask))


def test_training_loss_matches_golden():
    case = GoldenCase("maskgit_train")
    ids, context = case.arrays["in__ids"], case.arrays["in__context"]
    critic, variables = token_critic()
    scores = jax.jit(critic.apply)(
        variables, case.arrays["out__critic_input"], context, np.any(context != 0, axis=-1)
    )
    expected = case.arrays["out__critic_logits"].reshape(ids.shape)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=case.tolerance("critic_logits"))
    labels = masking.critic_labels(case.arrays["out__critic_pred_ids"].reshape(ids.shape), ids)
    loss = masking.critic_loss(scores, labels, np.ones(ids.shape, bool))
    np.testing.assert_allclose(loss, case.arrays["out__critic_loss"], atol=5e-6)
