"""The model that ships with gct_jax: phantom chests of 33 x 64 x 64, super-resolved to 256 x 256.

    bash launch/demo/train.sh out/demo                 # everything below, in order, resumable

    python -m launch.prepare --config configs/demo.py:ctvit --out out/demo/pool
    python -m launch.train --config configs/demo.py:ctvit --workdir out/demo/ctvit \\
        data.folder=out/demo/pool
    python -m launch.train --config configs/demo.py:t5 --workdir out/demo/t5
    python -m launch.prepare --config configs/demo.py:maskgit --out out/demo/pool \\
        --from out/demo/ctvit
    python -m launch.train --config configs/demo.py:maskgit --workdir out/demo/maskgit \\
        --from out/demo/ctvit --from out/demo/t5 data.folder=out/demo/pool
    python -m launch.prepare --config configs/demo.py:superres --out out/demo/pool \\
        --from out/demo/ctvit --from out/demo/maskgit
    python -m launch.train --config configs/demo.py:superres --workdir out/demo/superres \\
        --from out/demo/ctvit --from out/demo/maskgit data.folder=out/demo/pool
    python -m launch.export_model out/demo/ctvit out/demo/maskgit out/demo/superres \\
        --out gct_jax/assets/demo

The numbers of steps and cases are set so that everything together takes less than 90 minutes on two
CPU cores. Cases cost steps: 4,096 of them, each looked at once, and 2,100 steps of MaskGIT made a
model with 7 findings of AUROC >= 0.9; 2,048, looked at twice, and 2,300 steps the one that ships,
with 8.
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
    CTViTTraining,
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
        name="demo",
        description="Trained on the phantom of data_pipelines.phantom; not for medical use.",
        volume=VolumeConfig(slices=33, image_size=64, slice_spacing_mm=9.0, pixel_spacing_mm=5.625),
        ctvit=CTViTConfig(
            dim=192,
            codebook_size=1024,
            patch_size=8,
            temporal_patch_size=4,
            spatial_depth=2,
            temporal_depth=2,
            heads=4,
            dim_head=48,
        ),
        maskgit=MaskGitConfig(
            num_tokens=1024,
            max_sequence_length=2048,  # up to 32 token frames: 125 slices
            dim=192,
            context_dim=128,
            depth=4,
            heads=2,
            dim_head=96,
        ),
        t5=T5Config(
            vocab_size=1024, dim=128, depth=3, heads=4, dim_head=32, mlp_dim=256, max_length=72
        ),
        superres=UNetConfig(
            dim=16,
            dim_mults=(1, 2, 4),
            num_resnet_blocks=(1, 1, 1),
            layer_attns=("none", "none", "none"),
            layer_attns_depth=(1, 1, 1),
            layer_cross_attns=(False, False, True),
            attn_heads=4,
            attn_dim_head=16,
            mid_cross_attn_heads=4,
            mid_cross_attn_dim_head=16,
            text_embed_dim=128,
            max_text_len=72,
            resnet_groups=(8, 8, 8),
            init_cross_embed_kernel_sizes=(3, 7),
        ),
        diffusion=DiffusionConfig(image_size=256),
        sampling=SamplingConfig(
            # A lower temperature is no more faithful and less diverse.
            steps=18,
            temperature=8.0,
            guidance=3.0,
            # Closer to the phantom than 25 steps, sharper than fewer: configs/superres_study.md.
            superres_steps=6,
            superres_solver="ancestral",
            superres_noise_correlation_mm=36.0,
        ),
    )


def ctvit() -> TrainConfig:
    """CT-ViT on rendered volumes, with more weight on what is abnormal."""
    return TrainConfig(
        stage="ctvit",
        model=model(),
        optimizer=OptimizerConfig(
            algorithm="muon",
            learning_rate=2.5e-3,
            warmup_steps=100,
            schedule="cosine",
            final_fraction=0.02,
            clip_norm=1.0,
            ema_decay=0.995,
            weight_decay=0.01,
        ),
        loop=LoopConfig(
            steps=1800,
            batch_size=4,
            eval_every=900,
            sample_every=1800,
            checkpoint_every=100,
            log_every=25,
        ),
        data=DataConfig(cases=2048, held_out=32),
        # A short memory: the encoder moves fast at first, and unused codes must be free again soon.
        # A `lung_weight` of 1 costs 0.6 dB of the whole and brings no further finding out.
        # (This was measured while the phantom's ground glass and consolidation had two patches
        # instead of four.)
        ctvit=CTViTTraining(
            commitment_weight=0.02,
            soft_tissue_weight=0.05,
            codebook_decay=0.9,
            dead_code_threshold=0.1,
            continuous_steps=100,
            counterfactual_pairs=True,
            counterfactual_weight=6.0,
        ),
    )


def t5() -> TrainConfig:
    """The text encoder on reports alone."""
    return TrainConfig(
        stage="t5",
        model=model(),
        optimizer=OptimizerConfig(
            algorithm="muon",
            learning_rate=2e-3,
            warmup_steps=50,
            schedule="cosine",
            final_fraction=0.02,
            clip_norm=1.0,
            ema_decay=0.99,
        ),
        loop=LoopConfig(
            steps=1000, batch_size=32, eval_every=250, checkpoint_every=250, log_every=25
        ),
        data=DataConfig(cases=200_000, held_out=256),
        t5=T5Training(attributes=ATTRIBUTES, classes=CLASSES),
    )


def maskgit() -> TrainConfig:
    """MaskGIT and the text encoder on the tokens of rendered volumes."""
    return TrainConfig(
        stage="maskgit",
        model=model(),
        optimizer=OptimizerConfig(
            algorithm="muon",
            learning_rate=3.5e-3,
            warmup_steps=40,
            schedule="cosine",
            final_fraction=0.02,
            clip_norm=1.0,
            ema_decay=0.995,
            weight_decay=0.01,
        ),
        loop=LoopConfig(
            steps=2300,
            batch_size=4,
            eval_every=1150,
            sample_every=2300,
            checkpoint_every=100,
            log_every=25,
        ),
        data=DataConfig(cases=2048, held_out=32),
        maskgit=MaskGitTraining(
            train_text_encoder=True,
            text_encoder_rate=0.02,
            counterfactual_pairs=True,
            counterfactual_weight=5.0,
        ),
    )


def superres() -> TrainConfig:
    """The U-Net on slices: CT-ViT's reconstruction beside the full-resolution rendering."""
    return TrainConfig(
        stage="superres",
        model=model(),
        optimizer=OptimizerConfig(
            algorithm="muon",
            learning_rate=2e-3,
            warmup_steps=50,
            schedule="cosine",
            final_fraction=0.02,
            clip_norm=1.0,
            ema_decay=0.995,
        ),
        loop=LoopConfig(
            steps=1000,
            batch_size=2,
            eval_every=500,
            sample_every=1000,
            checkpoint_every=250,
            log_every=50,
        ),
        data=DataConfig(cases=112, held_out=16, slices_per_case=16),
        superres=SuperResTraining(low_res_noise_max=0.3, crop=128),
    )
