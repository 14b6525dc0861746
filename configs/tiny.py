"""The smallest model that can generate: 5 slices of 16 x 16, super-resolved to 32 x 32. For tests
and for trying the commands in a minute; its volumes show nothing.

    python -m launch.train --config configs/tiny.py:ctvit --workdir out/tiny/ctvit
    python -m launch.train --config configs/tiny.py:t5 --workdir out/tiny/t5
    python -m launch.train --config configs/tiny.py:maskgit --workdir out/tiny/maskgit \\
        --from out/tiny/ctvit --from out/tiny/t5
    python -m launch.train --config configs/tiny.py:superres --workdir out/tiny/superres \\
        --from out/tiny/ctvit --from out/tiny/maskgit
"""

from data_pipelines.phantom.attributes import ATTRIBUTES, CLASSES
from gct_jax.config import (
    CTViTConfig,
    DiffusionConfig,
    MaskGitConfig,
    ModelConfig,
    SamplingConfig,
    T5Config,
    UNetConfig,
    VolumeConfig,
)
from gct_jax.training.config import (
    DataConfig,
    LoopConfig,
    MaskGitTraining,
    OptimizerConfig,
    SuperResTraining,
    T5Training,
    TrainConfig,
)


def model() -> ModelConfig:
    """Sizes of every component."""
    return ModelConfig(
        name="tiny",
        volume=VolumeConfig(slices=5, image_size=16, slice_spacing_mm=60.0, pixel_spacing_mm=22.5),
        ctvit=CTViTConfig(
            dim=16,
            codebook_size=32,
            patch_size=8,
            temporal_patch_size=2,
            spatial_depth=1,
            temporal_depth=1,
            heads=2,
            dim_head=8,
        ),
        maskgit=MaskGitConfig(
            num_tokens=32,
            max_sequence_length=24,
            dim=16,
            context_dim=16,
            depth=1,
            heads=2,
            dim_head=8,
        ),
        t5=T5Config(
            vocab_size=128, dim=16, depth=1, heads=2, dim_head=8, mlp_dim=16, max_length=48
        ),
        superres=UNetConfig(
            dim=8,
            dim_mults=(1,),
            num_resnet_blocks=(1,),
            layer_attns=("none",),
            layer_attns_depth=(1,),
            layer_cross_attns=(True,),
            resnet_groups=(4,),
            attn_heads=2,
            attn_dim_head=8,
            mid_cross_attn_heads=2,
            mid_cross_attn_dim_head=8,
            text_embed_dim=16,
            max_text_len=48,
            attn_pool_text=False,
            init_cross_embed_kernel_sizes=None,
        ),
        diffusion=DiffusionConfig(image_size=32),
        sampling=SamplingConfig(steps=3, superres_steps=2),
    )


def _run(stage: str, **options) -> TrainConfig:
    return TrainConfig(
        stage=stage,
        model=model(),
        optimizer=OptimizerConfig(learning_rate=3e-3, clip_norm=1.0, ema_decay=0.9),
        loop=LoopConfig(
            steps=20,
            batch_size=8,
            log_every=5,
            eval_every=10,
            sample_every=20,
            checkpoint_every=10,
        ),
        data=DataConfig(cases=24, held_out=8, slices_per_case=2),
        **options,
    )


def ctvit() -> TrainConfig:
    """CT-ViT without a discriminator."""
    return _run("ctvit")


def t5() -> TrainConfig:
    """The text encoder on reports."""
    return _run("t5", t5=T5Training(attributes=ATTRIBUTES, classes=CLASSES))


def maskgit() -> TrainConfig:
    """MaskGIT with its text encoder."""
    return _run("maskgit", maskgit=MaskGitTraining(train_text_encoder=True))


def superres() -> TrainConfig:
    """The U-Net on half-sized squares."""
    return _run("superres", superres=SuperResTraining(crop=16))
