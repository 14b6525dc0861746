"""The published GenerateCT at its own size: volumes of 201 x 128 x 128 at 1.5 x 3 x 3 mm, slices
super-resolved to 512 x 512. Sizes, losses and rates are those of the PyTorch release; what it got
wrong is mended and named below.

    python -m launch.train --config configs/base.py:ctvit --workdir out/base/ctvit \\
        ctvit.vgg16=vgg16.safetensors
    python -m launch.train --config configs/base.py:maskgit --workdir out/base/maskgit \\
        --from out/base/ctvit --from T5_FOLDER
    python -m launch.train --config configs/base.py:superres --workdir out/base/superres \\
        --from out/base/ctvit --from T5_FOLDER

T5_FOLDER is a model folder with the T5 1.1 base encoder, as `python -m gct_jax convert` makes it.

As it stands, this trains on the phantom of `data_pipelines/phantom`, rendered at this size, which
shows that everything runs and teaches nothing about patients. CTs come from `data.source`, see
`data_pipelines/README.md`; CT-RATE as the published system prepared it is
`data.source=generatect data.root=CT_RATE/train data.reports=reports.xlsx`. They are prepared once,

    python -m launch.prepare --config configs/base.py:ctvit --out out/base/data data.source=...

and a stage gets `data.folder=out/base/data` with the same `data.source`. On several hosts the
phantom is prepared too; `launch/cluster/README.md` has the commands. Updates whose gradient is ten
times as large as usual are skipped and counted.
"""

from gct_jax.config import ModelConfig
from gct_jax.training.config import (
    CTViTTraining,
    DataConfig,
    LoopConfig,
    MaskGitTraining,
    OptimizerConfig,
    SuperResTraining,
    TrainConfig,
)


def model() -> ModelConfig:
    """Every default of the model is the published one; CT-ViT is truly causal in depth."""
    return ModelConfig(name="base")


def ctvit() -> TrainConfig:
    """Adam at 3e-5 without schedule. Mended: commitment of directions, revived codes, one
    clipping norm per network, penalty at every fourth discriminator update, average
    of the weights."""
    return TrainConfig(
        stage="ctvit",
        model=model(),
        optimizer=OptimizerConfig(
            learning_rate=3e-5, clip_norm=0.5, ema_decay=0.9999, spike_factor=10.0
        ),
        loop=LoopConfig(
            steps=100_000, batch_size=4, eval_every=1000, sample_every=1000, checkpoint_every=1000
        ),
        data=DataConfig(cases=50_000, held_out=64),
        remat=True,
        ctvit=CTViTTraining(adversarial=True, perceptual_weight=1.0),
    )


def maskgit() -> TrainConfig:
    """Adam at 3e-5, warm-up of 10,000 steps, cosine. Mended: conditioning dropout of 25 %,
    tokens encoded once instead of at every step, masking ratios without gaps. The layers of a
    volume keep half a gigabyte in bfloat16; with `remat=True` they are computed again instead."""
    return TrainConfig(
        stage="maskgit",
        model=model(),
        optimizer=OptimizerConfig(
            learning_rate=3e-5,
            warmup_steps=10_000,
            schedule="cosine",
            clip_norm=2.0,
            spike_factor=10.0,
        ),
        loop=LoopConfig(
            steps=4_000_000, batch_size=8, eval_every=2000, sample_every=2000, checkpoint_every=2000
        ),
        data=DataConfig(cases=50_000, held_out=64),
        maskgit=MaskGitTraining(text_drop=0.25, scale_gradient=0.1),
    )


def superres() -> TrainConfig:
    """Adam at 5e-4, condition noised at any level. Mended: a batch has slices of many volumes, each
    with a time and a noise level of its own; short warm-up, clipping."""
    return TrainConfig(
        stage="superres",
        model=model(),
        optimizer=OptimizerConfig(
            learning_rate=5e-4, warmup_steps=1000, clip_norm=1.0, spike_factor=10.0
        ),
        loop=LoopConfig(
            steps=500_000, batch_size=64, eval_every=2000, sample_every=5000, checkpoint_every=2000
        ),
        data=DataConfig(cases=50_000, held_out=64),
        remat=True,
        superres=SuperResTraining(text_drop=0.1),
    )
