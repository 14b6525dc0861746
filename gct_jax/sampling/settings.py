"""What is chosen for volumes, and what follows from it for the super-resolution."""

import dataclasses
from typing import Any, NamedTuple

from gct_jax.config import DiffusionConfig, ModelConfig, SamplingConfig
from gct_jax.ranges import choice, number


@dataclasses.dataclass(frozen=True)
class Settings(SamplingConfig):
    """What a user chooses for volumes: the fields of `SamplingConfig` and these.

    slices: depth of the volume, a count that CT-ViT's patches tile.
    superres: False stops after CT-ViT.
    dtype: of the computation, "float32" or "bfloat16".
    """

    slices: int = number(1, least=1)
    superres: bool = True
    dtype: str = choice("float32", ("float32", "bfloat16"))


def choose_settings(config: ModelConfig, **chosen: Any) -> Settings:
    """The model's own settings and depth, with those fields of `chosen` in their place that are not
    None.

    Raises:
      ConfigError: a value outside its range, see `SamplingConfig`.
    """
    given = {name: value for name, value in chosen.items() if value is not None}
    own = {"slices": config.volume.slices, **dataclasses.asdict(config.sampling)}
    return Settings(**(own | given))


class SuperresSettings(NamedTuple):
    """How slices are enlarged; static and hashable.

    diffusion: the forward process and the size of the result.
    steps, guidance: number of steps; s in null + s (text - null), 1 leaves the null branch out.
    solver: see `gct_jax.sampling.diffusion_solvers`; the elucidated process has its own.
    self_cond: whether the network is given its previous prediction.
    noise_correlation: slices after which the noise is an independent one, at least 1.
    """

    diffusion: DiffusionConfig
    steps: int = 25
    guidance: float = 1.0
    solver: str = "ancestral"
    self_cond: bool = False
    noise_correlation: float = 1.0


def superres_settings(config: ModelConfig, sampling: SamplingConfig) -> SuperresSettings:
    """What a model's U-Net is sampled with."""
    assert config.superres and config.diffusion  # see check_components_fit
    return SuperresSettings(
        config.diffusion,
        steps=sampling.superres_steps,
        guidance=sampling.superres_guidance,
        solver=sampling.superres_solver,
        self_cond=config.superres.self_cond,
        noise_correlation=max(
            1.0, sampling.superres_noise_correlation_mm / config.volume.slice_spacing_mm
        ),
    )
