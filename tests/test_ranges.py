"""Every field of every configuration states its range where it is declared, and is held to it."""

import dataclasses
import math
import types
import typing

import pytest

from configs import base, demo, large, tiny
from gct_jax import config as model_config
from gct_jax.config import ModelConfig, SamplingConfig, UNetConfig, from_dict, override, to_dict
from gct_jax.errors import ConfigError
from gct_jax.ranges import RANGE, Checked, Range
from gct_jax.training import config as training_config
from gct_jax.training.config import OptimizerConfig, SuperResTraining, TrainConfig

FREE_TEXT = {
    "name",
    "description",
    "folder",
    "source",
    "root",
    "reports",
    "vgg16",
    "exclude",
    "more_folders",
}
CLASSES = [
    cls
    for module in (model_config, training_config)
    for cls in vars(module).values()
    if dataclasses.is_dataclass(cls) and cls not in (Range,)
]
FIELDS = [(cls, field) for cls in CLASSES for field in dataclasses.fields(cls)]


def kind(cls, field):
    """int, float, str, bool or a configuration class, inside a tuple or beside None as well."""
    hint = typing.get_type_hints(cls)[field.name]
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


@pytest.mark.parametrize(
    ("cls", "field"), FIELDS, ids=[f"{cls.__name__}.{f.name}" for cls, f in FIELDS]
)
def test_every_field_states_its_range(cls, field):
    assert issubclass(cls, Checked)
    inside = kind(cls, field)
    if inside is str:
        assert field.name in FREE_TEXT or field.metadata[RANGE].choices
    elif inside in (int, float):
        limits = field.metadata[RANGE]
        assert (limits.least, limits.above) != (None, None)
    else:
        assert inside is bool or inside in CLASSES


@pytest.mark.parametrize("make", [base, demo, large, tiny])
def test_shipped_configurations_are_within_their_ranges(make):
    for stage in ("ctvit", "maskgit", "superres"):
        config = getattr(make, stage)()
        assert from_dict(TrainConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("maskgit.text_drop=10", "maskgit.text_drop = 10.0 must be a number of at least 0 and of"),
        ("optimizer.ema_decay=-1", "optimizer.ema_decay = -1.0 must"),
        ("optimizer.b2=2", "optimizer.b2 = 2.0 must be a number of at least 0 and below 1"),
        ("optimizer.b1=1", "optimizer.b1 = 1.0 must"),
        ("ctvit.codebook_decay=1.5", "ctvit.codebook_decay = 1.5 must"),
        ("optimizer.warmup_steps=-5", "optimizer.warmup_steps = -5 must be a number of at least 0"),
        ("model.sampling.temperature=-1", "model.sampling.temperature = -1.0 must"),
        ("optimizer.learning_rate=1e400", "optimizer.learning_rate = inf is not finite"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate = 0.0 must be a number above 0"),
        ("loop.seed=-1", "loop.seed = -1 must"),
        ("loop.seed=4294967296", "loop.seed = 4294967296 must"),
        ("loop.mesh=[1, 1]", r"loop.mesh = \(1, 1\) must have 3 entries"),
        ("loop.mesh=[0, 1, 1]", "must be a number of at least 1, or -1"),
        ("loop.steps=1.5", "loop.steps must be of type int"),
        ("model.ctvit.dim=0", "model.ctvit.dim = 0 must"),
        ("model.superres.dim_mults=[0]", r"dim_mults = \(0,\) holds 0, which must"),
        ("model.diffusion.objective=w", "objective = 'w' is not one of 'v', 'noise', 'x_start'"),
        ("stage=vae", "stage = 'vae' is not one of"),
        ("superres.low_res_noise_min=0.9; superres.low_res_noise_max=0.1", "must not be above"),
    ],
)
def test_values_outside_are_refused_by_name(assignment, message):
    with pytest.raises(ConfigError, match=message):
        override(tiny.maskgit(), assignment.split("; "))


@pytest.mark.parametrize("value", [True, "3", math.nan, 1.5, None])
def test_types_are_checked_in_python_as_well(value):
    with pytest.raises(ConfigError, match=r"SamplingConfig\.steps"):
        SamplingConfig(steps=value)


def test_the_ends_of_a_range():
    assert OptimizerConfig(b1=0.0, ema_decay=1.0).ema_decay == 1.0
    assert SuperResTraining(low_res_noise_min=1.0).low_res_noise_min == 1.0
    assert ModelConfig(superres=None).superres is None
    assert UNetConfig(cond_dim=None).cond_dim is None


def test_of_a_field_that_is_given_twice_the_last_value_counts_and_that_is_told():
    notes = []
    old_and_new = ["unet.dim=8", "superres.dim=16"]
    assert override(ModelConfig(), old_and_new, on_note=notes.append).superres.dim == 16
    assert notes[-1] == "override superres.dim is given as 8 and as 16; the last counts"
    assert override(ModelConfig(), ["sampling.steps=3"] * 2).sampling.steps == 3
