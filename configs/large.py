"""About ten times the parameters of `configs/base.py`, on the same volumes, for a pod.

    python -m launch.plan --config configs/large.py --topology v5e:16x16 --rows 256 --slice-rows 512
    python -m launch.train --multi-host --config configs/large.py:ctvit --workdir $B/ctvit \\
        data.source=shards data.folder=$B/ct_rate ctvit.vgg16=vgg16.safetensors

Transformers are three times as wide, MaskGIT is deeper too, the U-Net four times as wide, and all
compute in bfloat16. Rates are those of the published sizes, lowered with the width, and untried:
nothing of this size was trained yet. The text encoder is the published T5 1.1 base.
"""

import dataclasses

from configs import base
from gct_jax.config import CTViTConfig, ModelConfig
from gct_jax.training.config import TrainConfig


def model() -> ModelConfig:
    """460 million parameters of CT-ViT, 395 of MaskGIT, 326 of the U-Net."""
    published = base.model()
    assert isinstance(published.ctvit, CTViTConfig) and published.maskgit and published.superres
    return dataclasses.replace(
        published,
        name="large",
        ctvit=dataclasses.replace(published.ctvit, dim=1536, heads=24, dim_head=64),
        maskgit=dataclasses.replace(published.maskgit, dim=1536, heads=24, depth=10),
        superres=dataclasses.replace(published.superres, dim=256),
    )


def ctvit() -> TrainConfig:
    """As `configs.base.ctvit`, 256 volumes a batch."""
    return _widened(base.ctvit(), learning_rate=1e-5, batch_size=256)


def maskgit() -> TrainConfig:
    """As `configs.base.maskgit`, 256 volumes a batch."""
    return _widened(base.maskgit(), learning_rate=1e-5, batch_size=256)


def superres() -> TrainConfig:
    """As `configs.base.superres`, 512 slices a batch."""
    return _widened(base.superres(), learning_rate=1e-4, batch_size=512)


def _widened(config: TrainConfig, *, learning_rate: float, batch_size: int) -> TrainConfig:
    return dataclasses.replace(
        config,
        model=model(),
        dtype="bfloat16",
        remat=True,
        optimizer=dataclasses.replace(config.optimizer, learning_rate=learning_rate),
        loop=dataclasses.replace(config.loop, batch_size=batch_size),
    )
