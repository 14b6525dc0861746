"""Three steps of every stage with every setting away from its default: losses, changed parameters,
averages and what is exported, as they were recorded; and the wires one by one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pinned_run
import pytest
from compiling import quick_jit
from tiny_model import random_variables

from configs import tiny
from gct_jax.components import COMPONENTS, abstract_variables
from gct_jax.config import override
from gct_jax.random_keys import random_key
from gct_jax.training import config as training_config
from gct_jax.training.config import TrainConfig
from gct_jax.training.hidden_units import cropped
from gct_jax.training.stages import stage_module

STEPS = 3
OPTIMIZER = [
    "optimizer.learning_rate=0.002",
    "optimizer.warmup_steps=2",
    "optimizer.schedule=cosine",
    "optimizer.final_fraction=0.2",
    "optimizer.b1=0.8",
    "optimizer.b2=0.95",
    "optimizer.weight_decay=0.3",
    "optimizer.clip_norm=0.7",
    "optimizer.ema_decay=0.05",
    "loop.steps=5",
]
SETTINGS = {
    "ctvit": [
        "ctvit.reconstruction_weight=0.7",
        "ctvit.commitment_weight=0.6",
        "ctvit.continuous_steps=1",
        "ctvit.soft_tissue_weight=0.3",
        "ctvit.lung_weight=0.4",
        "ctvit.counterfactual_pairs=True",
        "ctvit.counterfactual_weight=1.5",
        "ctvit.adversarial=True",
        "ctvit.discriminator_start_step=1",
        "ctvit.discriminator_every=1",
        "ctvit.discriminator_base_dim=2",
        "ctvit.discriminator_learning_rate=0.001",
        "ctvit.penalty_every=2",
        "ctvit.codebook_decay=0.7",
        "ctvit.dead_code_threshold=0.3",
    ],
    "t5": ["t5.attributes=3", "t5.classes=5", "optimizer.algorithm=muon"],
    "maskgit": [
        "maskgit.mask_levels=7",
        "maskgit.text_drop=0.3",
        "maskgit.train_text_encoder=True",
        "maskgit.text_encoder_rate=0.4",
        "maskgit.scale_gradient=0.6",
        "maskgit.counterfactual_pairs=True",
        "maskgit.counterfactual_weight=0.8",
        "maskgit.critic=token",
        "maskgit.critic_weight=0.5",
    ],
    "superres": [
        "superres.text_drop=0.4",
        "superres.low_res_noise_min=0.2",
        "superres.low_res_noise_max=0.7",
        "superres.crop=16",
        "model.diffusion.objective=noise",
        "model.diffusion.noise_schedule=linear",
        "model.diffusion.low_res_noise_schedule=cosine",
        "model.diffusion.p2_loss_weight_gamma=0.8",
        "model.diffusion.p2_loss_weight_k=1.5",
    ],
}
# Held elsewhere: these need files or devices of their own, or change no number.
ELSEWHERE = {"ctvit": {"commitment", "perceptual_weight", "vgg16"}}


def configuration(stage) -> TrainConfig:
    return override(getattr(tiny, stage)(), [*OPTIMIZER, *SETTINGS[stage]])


def batch_of(stage, rows=4):
    rng = np.random.default_rng(7)
    volume = rng.uniform(-1, 1, (rows, 5, 16, 16, 1)).astype(np.float32)
    volume[1::2, 2:] = volume[::2, 2:]  # the rows of a pair differ in their first slices
    ids = rng.integers(0, 32, (rows, 3, 2, 2), dtype=np.int32)
    ids[1::2, 1:] = ids[::2, 1:]
    text = rng.integers(3, 128, (rows, 48), dtype=np.int32)
    text[:, 39], text[:, 40:] = 1, 0  # the end token, padding
    everything = {
        "volume": volume,
        "token_ids": ids,
        "text_ids": text,
        "attributes": rng.integers(-1, 5, (rows, 3), dtype=np.int32),
        "low_res": rng.uniform(-1, 1, (rows, 16, 16, 1)).astype(np.float32),
        "high_res": rng.uniform(-1, 1, (rows, 32, 32, 1)).astype(np.float32),
    }
    needed = {
        "ctvit": ("volume",),
        "t5": ("text_ids", "attributes"),
        "maskgit": ("token_ids", "text_ids"),
        "superres": ("low_res", "high_res", "text_ids"),
    }
    return {name: everything[name] for name in needed[stage]}


def pretrained(config):
    components = ("ctvit", "maskgit", "t5", "superres")
    return {p: jax.tree.map(jnp.asarray, random_variables(config.model, p)) for p in components}


def with_published_widths(config, trees):
    return {
        name: cropped(tree, abstract_variables(config.model, name)["params"])
        if name in COMPONENTS
        else tree
        for name, tree in trees.items()
    }


@pytest.mark.parametrize("stage", SETTINGS)
@pytest.mark.long
def test_pinned_training(stage):
    config, batch = configuration(stage), batch_of(stage)
    module = stage_module(config)
    start = state = module.init_state(config, random_key(3), pretrained(config))
    step = quick_jit(functools.partial(module.train_step, config))
    results = {}
    for number in range(STEPS):
        state, metrics = step(state, batch, jax.random.fold_in(state.key, state.step))
        state = state.replace(step=state.step + 1)
        results[f"step {number}"] = {name: float(value) for name, value in metrics.items()}
    evaluation = quick_jit(functools.partial(module.eval_step, config))(state, batch, random_key(1))
    results["evaluation"] = {name: float(value) for name, value in evaluation.items()}
    moved = jax.tree.map(jnp.subtract, (state.params, state.ema), (start.params, start.ema))
    results["changed"] = pinned_run.summary(
        tuple(with_published_widths(config, tree) for tree in moved)
    )
    results["exported"] = pinned_run.summary(module.trained_components(config, state))
    pinned_run.check(f"train_{stage}", results)


@pytest.mark.parametrize("stage", SETTINGS)
def test_every_setting_is_away_from_its_default(stage):
    config = configuration(stage)
    sections = {"optimizer": config.optimizer, stage: getattr(config, stage)}
    if stage == "superres":
        sections["diffusion"] = config.model.diffusion
    for name, section in sections.items():
        skipped = ELSEWHERE.get(name, set())
        if name == "optimizer":
            # Muon's run is T5's; the loop skips spikes, see test_spikes.py
            skipped = {"algorithm", "spike_factor"}
        if name == "diffusion":  # of sampling alone, or of the model
            skipped = {
                "image_size", "low_res_noise_level", "dynamic_thresholding",
                "dynamic_thresholding_percentile", "process",
            }  # fmt: skip
        for field in dataclasses.fields(section):
            if field.name not in skipped:
                assert getattr(section, field.name) != field.default, f"{name}.{field.name}"
    assert training_config.T5Training().attributes != configuration("t5").t5.attributes


# --- The wires one by one

AVERAGED = [pytest.param(s, marks=pytest.mark.slow) if s == "ctvit" else s for s in SETTINGS]


@pytest.mark.parametrize("stage", AVERAGED)
def test_what_is_exported_are_the_averages(stage):
    config = configuration(stage)
    module = stage_module(config)
    state = module.init_state(config, random_key(3), pretrained(config))
    marked = state.replace(
        params=jax.tree.map(jnp.zeros_like, state.params),
        ema=jax.tree.map(lambda x: jnp.full_like(x, 2), state.ema),
    )
    exported = module.trained_components(config, marked)
    for component, variables in exported.items():
        for leaf in jax.tree.leaves(variables["params"]):
            assert (np.asarray(leaf) == 2).all(), component


@pytest.mark.parametrize("stage", AVERAGED)
def test_what_is_evaluated_are_the_averages(stage):
    config, batch = configuration(stage), batch_of(stage)
    module = stage_module(config)
    state = module.init_state(config, random_key(3), pretrained(config))
    broken = state.replace(
        params={
            name: tree if name == "discriminator" else jax.tree.map(lambda x: x * np.nan, tree)
            for name, tree in state.params.items()
        }
    )
    evaluate = quick_jit(functools.partial(module.eval_step, config))
    for name, value in evaluate(broken, batch, random_key(1)).items():
        assert np.isfinite(value), name


@pytest.mark.parametrize("stage", ["maskgit", "superres"])
def test_dropped_text_does_not_matter_and_kept_text_does(stage):
    config = override(configuration(stage), ["maskgit.critic=none"])
    module = stage_module(config)
    start = {component: variables["params"] for component, variables in pretrained(config).items()}
    params = start["superres"] if stage == "superres" else start
    batch = batch_of(stage)
    other = {**batch, "text_ids": batch["text_ids"].copy()}
    other["text_ids"][:, :40] = 5

    @quick_jit
    def loss(batch, share):
        found = module.loss_fn(params, {"t5": start["t5"]}, config, batch, random_key(5), share)
        return jnp.asarray(found[0] if stage == "maskgit" else found)

    for share, matters in ((0.0, True), (1.0, False)):
        losses = [float(loss(b, share)) for b in (batch, other)]
        assert (abs(losses[0] - losses[1]) > 1e-6) is matters


def test_maskgit_is_shown_what_is_not_hidden_and_nothing_else(monkeypatch):
    config = override(configuration("maskgit"), ["maskgit.critic=none", "maskgit.mask_levels=0"])
    module, batch, shown = stage_module(config), batch_of("maskgit", rows=8), []

    class Recorder:
        num_tokens = 32

        def apply(self, variables, ids, text, mask, token_mask=None):
            shown.append(np.asarray(ids))
            return jnp.zeros((*ids.shape, 32))

    class Text:
        def apply(self, variables, ids):
            return jnp.zeros((*ids.shape, 16))

    monkeypatch.setattr(module, "models", lambda config: (Recorder(), None))
    monkeypatch.setattr(module, "build_component", lambda *_: Text())
    params: dict = {"maskgit": {}, "t5": {}}
    _, metrics = module.loss_fn(params, {}, config, batch, random_key(5), 0.0)
    (ids,) = shown
    masked = ids == 32
    np.testing.assert_array_equal(ids[~masked], batch["token_ids"][~masked])
    assert 0 < masked.mean() < 1
    np.testing.assert_array_equal(masked[::2], masked[1::2])  # a pair gets one mask
    assert float(metrics["masked_share"]) == pytest.approx(masked.mean())
    assert float(metrics["cross_entropy"]) == pytest.approx(np.log(32), rel=1e-5)


@pytest.mark.parametrize("commitment", ["normalized", "reference"])
def test_the_reconstruction_reaches_the_encoder_through_the_codes(commitment):
    options = [
        "ctvit.adversarial=False",
        "ctvit.commitment_weight=0",
        "ctvit.counterfactual_pairs=False",
    ]
    options += [f"ctvit.commitment={commitment}", "ctvit.continuous_steps=0"]
    config = override(configuration("ctvit"), options)
    module = stage_module(config)
    state = module.init_state(config, random_key(3), pretrained(config))

    @quick_jit
    def gradient(params):
        loss = functools.partial(
            module.generator_loss,
            state=state,
            config=config,
            key=random_key(5),
            batch=batch_of("ctvit"),
        )
        return jax.grad(lambda p: loss(p)[0])(params)

    found = gradient(state.params["ctvit"])
    for layer in ("encoder_spatial", "encoder_temporal", "patch_embedding", "decoder_spatial"):
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found[layer])) > 1e-6
