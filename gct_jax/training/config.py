"""Frozen dataclasses that describe a training run; `configs/*.py` return them, `launch.train`
overrides their fields by name (`optimizer.learning_rate=1e-4`)."""

import dataclasses

from gct_jax.config import ModelConfig, require_choice, require_positive


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer with clipping, warm-up and an average of the weights.

    `algorithm` "adamw" (Adam without `weight_decay`), or "muon" for the matrices between hidden
    units with AdamW for the rest (Jordan et al. 2024), which needs fewer steps.
    `schedule` "cosine" falls from `learning_rate` to `final_fraction` of it at the last step.
    """

    algorithm: str = "adamw"
    learning_rate: float = 3e-5
    warmup_steps: int = 0
    schedule: str = "constant"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float = 0.5
    ema_decay: float = 0.9999

    def __post_init__(self):
        require_choice("optimizer.algorithm", self.algorithm, ("adamw", "muon"))
        require_choice("optimizer.schedule", self.schedule, ("constant", "cosine"))
        require_positive(self, "learning_rate", "clip_norm")


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length and rhythm of a run. Intervals count steps; 0 switches one off.

    `mesh` counts the devices along ("data", "fsdp", "tensor"); one entry may be -1 (the rest).
    """

    steps: int = 1000
    batch_size: int = 4
    seed: int = 0
    log_every: int = 50
    eval_every: int = 500
    sample_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    mesh: tuple[int, ...] = (-1, 1, 1)

    def __post_init__(self):
        require_positive(self, "steps", "batch_size", "log_every", "keep_checkpoints")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Phantom cases 0 ... `cases` - 1; the last `held_out` of them serve evaluation only.

    `prepare` renders them once into `folder` ("": `data` in the run's folder; several stages may
    share one); without it CT-ViT's volumes are rendered for every batch. Super-resolution keeps
    `slices_per_case` random slices of each case.
    """

    cases: int = 4000
    held_out: int = 16
    prepare: bool = True
    folder: str = ""
    slices_per_case: int = 8

    def __post_init__(self):
        require_positive(self, "cases", "held_out", "slices_per_case")


@dataclasses.dataclass(frozen=True)
class CTViTTraining:
    """Losses of the first stage (reference section 3.5), with the cadence that it meant.

    `commitment` "normalized" compares unit vectors (mends reference Q6), "reference" raw ones.
    For the first `continuous_steps` the decoder sees latents that are not quantised yet, so that
    the codebook starts from tokens that mean something instead of collapsing onto a few.
    `principal_start` > 0: patches of that many volumes give the first weights
    (`gct_jax.training.ctvit_start`); 0 draws them.
    `vgg16` is a .safetensors file of torchvision's VGG-16, for the perceptual loss.
    `soft_tissue_weight` adds a mean absolute error of the soft-tissue window, where contrast is
    small, `lung_weight` a mean squared error of the range of aerated lung.
    From `discriminator_start_step` on, each `discriminator_every`-th step also updates the
    discriminator, each `penalty_every`-th of these with the gradient penalty.
    `twins`: rows 2i and 2i + 1 of a batch are one patient with other findings; voxels in which they
    differ count 1 + `twin_weight` times.
    A codebook entry whose smoothed usage falls below `dead_code_threshold` (a share of the mean
    usage) is replaced by a token of the batch.
    """

    reconstruction_weight: float = 1.0
    commitment: str = "normalized"
    commitment_weight: float = 1.0
    continuous_steps: int = 0
    principal_start: int = 0
    soft_tissue_weight: float = 0.0
    lung_weight: float = 0.0
    twins: bool = False
    twin_weight: float = 0.0
    perceptual_weight: float = 0.0
    vgg16: str = ""
    adversarial: bool = False
    discriminator_start_step: int = 0
    discriminator_every: int = 3
    discriminator_base_dim: int = 16
    discriminator_learning_rate: float = 3e-7
    penalty_every: int = 4
    codebook_decay: float = 0.99
    dead_code_threshold: float = 0.05

    def __post_init__(self):
        require_choice("ctvit.commitment", self.commitment, ("normalized", "reference"))
        require_positive(self, "discriminator_every", "penalty_every", "codebook_decay")


@dataclasses.dataclass(frozen=True)
class T5Training:
    """Number of attributes that the text encoder learns to read, and of classes of each."""

    attributes: int = 1
    classes: int = 2


@dataclasses.dataclass(frozen=True)
class MaskGitTraining:
    """Second stage (reference section 4.1). `steps` is S of the masking schedule, 0 for a
    continuous ratio; conditioning is dropped for a share `text_drop` of the samples (mends Q13).
    `text_encoder_rate` multiplies the text encoder's learning rate.
    `gradient_shrink` scales the gradient of the embeddings (0.1 in the published training, Q18).
    `twins`: rows 2i and 2i + 1 of a batch are one patient with two reports; they get the same mask,
    and tokens in which they differ count 1 + `twin_weight` times.
    """

    steps: int = 0
    text_drop: float = 0.1
    train_text_encoder: bool = False
    text_encoder_rate: float = 1.0
    gradient_shrink: float = 1.0
    twins: bool = False
    twin_weight: float = 0.0
    critic: str = "none"
    critic_weight: float = 1.0

    def __post_init__(self):
        require_choice("maskgit.critic", self.critic, ("none", "token", "self"))


@dataclasses.dataclass(frozen=True)
class SuperResTraining:
    """Third stage (reference section 7). The low-resolution image is noised at a level drawn
    uniformly from [`low_res_noise_min`, `low_res_noise_max`]; `crop` > 0 trains on random squares
    of that many output pixels (a multiple of the up-scaling factor)."""

    text_drop: float = 0.1
    low_res_noise_min: float = 0.0
    low_res_noise_max: float = 1.0
    crop: int = 0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run: which `stage` of which `model`, how long, from which data.

    `dtype` "float32" or "bfloat16": the networks compute in it. Parameters, optimizer, averages,
    norms, softmax, codebook and losses stay float32.
    `recompute`: the backward pass of CT-ViT and MaskGIT computes each layer again instead of
    keeping it, that of the U-Net each ResNet block: a fraction of the memory, for another forward
    pass.
    """

    stage: str
    model: ModelConfig
    dtype: str = "float32"
    recompute: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    data: DataConfig = DataConfig()
    ctvit: CTViTTraining = CTViTTraining()
    t5: T5Training = T5Training()
    maskgit: MaskGitTraining = MaskGitTraining()
    superres: SuperResTraining = SuperResTraining()

    def __post_init__(self):
        require_choice("stage", self.stage, ("ctvit", "t5", "maskgit", "superres"))
        require_choice("dtype", self.dtype, ("float32", "bfloat16"))
