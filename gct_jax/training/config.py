"""Frozen dataclasses that describe a training run; `configs/*.py` return them, `launch.train`
overrides their fields by name (`optimizer.learning_rate=1e-4`)."""

import dataclasses

from gct_jax.config import LARGEST_SEED, CriticConfig, ModelConfig
from gct_jax.errors import ConfigError
from gct_jax.ranges import RANGE, Checked, Range, choice, number


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """Optimizer with clipping, warm-up and an average of the weights.

    `algorithm` "adamw" (Adam without `weight_decay`), or "muon" for the matrices between hidden
    units with AdamW for the rest (Jordan et al. 2024), which needs fewer steps.
    `schedule` "cosine" falls from `learning_rate` to `final_fraction` of it at the last step.
    `spike_factor` skips an update whose gradient is this many times as large as usual
    (`gct_jax.training.spikes`); 0 skips none.
    """

    algorithm: str = choice("adamw", ("adamw", "muon"))
    learning_rate: float = number(3e-5, above=0, most=100)
    warmup_steps: int = number(0, least=0)
    schedule: str = choice("constant", ("constant", "cosine"))
    final_fraction: float = number(0.0, least=0, most=1)
    b1: float = number(0.9, least=0, below=1)
    b2: float = number(0.99, least=0, below=1)
    weight_decay: float = number(0.0, least=0)
    clip_norm: float = number(0.5, above=0)
    ema_decay: float = number(0.9999, least=0, most=1)
    spike_factor: float = number(0.0, above=1, special=0)


@dataclasses.dataclass(frozen=True)
class LoopConfig(Checked):
    """Length and rhythm of a run. Intervals count steps; 0 switches one off.

    `mesh` counts the devices along ("data", "fsdp", "tensor"); one entry may be -1 (the rest).
    `micro_batches` computes a batch in so many parts (`gct_jax.training.micro_batches`).
    `resume_step` goes back to the checkpoint of this step, once; 0 goes on from the newest.
    """

    steps: int = number(1000, least=1)
    batch_size: int = number(4, least=1)
    seed: int = number(0, least=0, most=LARGEST_SEED)
    log_every: int = number(50, least=1)
    eval_every: int = number(500, least=0)
    sample_every: int = number(500, least=0)
    checkpoint_every: int = number(500, least=0)
    keep_checkpoints: int = number(2, least=1)
    mesh: tuple[int, ...] = number((-1, 1, 1), least=1, special=-1, length=3)
    micro_batches: int = number(1, least=1)
    resume_step: int = number(0, least=0)


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """What is trained on: a source (`data_pipelines/source.py`) and its options.

    `source` is the name of a source, or "MODULE:CLASS" of one's own. It has at most `cases` cases,
    of which about `held_out` serve evaluation only (whole patients do; of a folder of files 0 means
    16, or a fifth if that is less).
    `root` and `reports` say where a source's files lie, if it has any; `exclude` names files that
    list cases to leave out, `text` the part of a report that is read where there are several,
    `one_per_scan` leaves out further reconstructions of a scan.
    `folder` is what `launch.prepare` wrote for this configuration; several stages may share it.
    "" trains on what is rendered case by case, which a single process on the phantom can.
    `source` "shards" streams what `launch.prepare --source` (`--tokens`, `--pairs`) wrote into
    `folder`, mixed with `more_folders` by `weights` (() for the weight of their cases).
    `skip_damaged` passes over records that are damaged. Shards of at most `hold_gb` GB are held in
    memory.
    Super-resolution keeps `slices_per_case` random slices of each case.
    """

    OLD_NAMES = (("prepare", None),)

    source: str = "phantom"
    cases: int = number(4000, least=2)
    held_out: int = number(16, least=1, special=0)
    root: str = ""
    reports: str = ""
    exclude: tuple[str, ...] = ()
    text: str = choice("impressions", ("findings", "impressions", "both"))
    one_per_scan: bool = False
    folder: str = ""
    more_folders: tuple[str, ...] = ()
    weights: tuple[float, ...] = number((), above=0)
    skip_damaged: bool = False
    hold_gb: float = number(2.0, least=0)
    slices_per_case: int = number(8, least=1)


@dataclasses.dataclass(frozen=True)
class CTViTTraining(Checked):
    """Losses of the first stage (GenerateCT, section 3.1), with the cadence that it meant.

    `commitment` "normalized" compares unit vectors, as codes are chosen by direction, "reference"
    raw ones.
    For the first `continuous_steps` the decoder sees latents that are not quantised yet, so that
    the codebook starts from tokens that mean something instead of collapsing onto a few.
    `vgg16` is a .safetensors file of torchvision's VGG-16, for the perceptual loss.
    `soft_tissue_weight` adds a mean absolute error of the soft-tissue window, where contrast is
    small, `lung_weight` a mean squared error of the range of aerated lung.
    From `discriminator_start_step` on, each `discriminator_every`-th step also updates the
    discriminator, each `penalty_every`-th of these with the gradient penalty.
    `counterfactual_pairs`: rows 2i and 2i + 1 of a batch are one patient with other findings;
    voxels in which they differ count 1 + `counterfactual_weight` times.
    A codebook entry whose smoothed usage falls below `dead_code_threshold` (a share of the mean
    usage) is replaced by a token of the batch.
    """

    OLD_NAMES = (
        ("twins", "counterfactual_pairs"),
        ("twin_weight", "counterfactual_weight"),
        ("principal_start", None),
    )

    reconstruction_weight: float = number(1.0, least=0)
    commitment: str = choice("normalized", ("normalized", "reference"))
    commitment_weight: float = number(1.0, least=0)
    continuous_steps: int = number(0, least=0)
    soft_tissue_weight: float = number(0.0, least=0)
    lung_weight: float = number(0.0, least=0)
    counterfactual_pairs: bool = False
    counterfactual_weight: float = number(0.0, least=0)
    perceptual_weight: float = number(0.0, least=0)
    vgg16: str = ""
    adversarial: bool = False
    discriminator_start_step: int = number(0, least=0)
    discriminator_every: int = number(3, least=1)
    discriminator_base_dim: int = number(16, least=1)
    discriminator_learning_rate: float = number(3e-7, above=0, most=100)
    penalty_every: int = number(4, least=1)
    codebook_decay: float = number(0.99, least=0, below=1)
    dead_code_threshold: float = number(0.05, least=0, below=1)


@dataclasses.dataclass(frozen=True)
class T5Training(Checked):
    """Number of attributes that the text encoder learns to read, and of classes of each."""

    attributes: int = number(1, least=1)
    classes: int = number(2, least=2)


@dataclasses.dataclass(frozen=True)
class MaskGitTraining(Checked):
    """Second stage (GenerateCT, section 3.2). `mask_levels` is S of the masking schedule, 0 for a
    continuous ratio; conditioning is dropped for a share `text_drop` of the samples.
    `text_encoder_rate` multiplies the text encoder's learning rate.
    `scale_gradient` scales the gradient of the embeddings (0.1 in the published training).
    `counterfactual_pairs`: rows 2i and 2i + 1 of a batch are one patient with two reports; they get
    the same mask, and tokens in which they differ count 1 + `counterfactual_weight` times.
    `critic` "token" or "self" trains one beside MaskGIT; it ships as the model's `critic`.
    """

    OLD_NAMES = (
        ("steps", "mask_levels"),
        ("gradient_shrink", "scale_gradient"),
        ("twins", "counterfactual_pairs"),
        ("twin_weight", "counterfactual_weight"),
    )

    mask_levels: int = number(0, least=0)
    text_drop: float = number(0.1, least=0, most=1)
    train_text_encoder: bool = False
    text_encoder_rate: float = number(1.0, least=0)
    scale_gradient: float = number(1.0, least=0, most=1)
    counterfactual_pairs: bool = False
    counterfactual_weight: float = number(0.0, least=0)
    critic: str = choice("none", ("none", "token", "self"))
    critic_weight: float = number(1.0, least=0)


@dataclasses.dataclass(frozen=True)
class SuperResTraining(Checked):
    """Third stage (GenerateCT, section 3.3). The low-resolution image is noised at a level drawn
    uniformly from [`low_res_noise_min`, `low_res_noise_max`]; `crop` > 0 trains on random squares
    of that many output pixels (a multiple of the up-scaling factor)."""

    text_drop: float = number(0.1, least=0, most=1)
    low_res_noise_min: float = number(0.0, least=0, most=1)
    low_res_noise_max: float = number(1.0, least=0, most=1)
    crop: int = number(0, least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_res_noise_min > self.low_res_noise_max:
            raise ConfigError(
                f"SuperResTraining.low_res_noise_min = {self.low_res_noise_min} must not be above "
                f"low_res_noise_max = {self.low_res_noise_max}"
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """One run: which `stage` of which `model`, how long, from which data.

    `dtype` "float32" or "bfloat16": the networks compute in it. Parameters, optimizer, averages,
    norms, softmax, codebook and losses stay float32.
    `remat`: the backward pass of CT-ViT and MaskGIT computes each layer again instead of
    keeping it, that of the U-Net each ResNet block: a fraction of the memory, for another forward
    pass.
    A critic that `maskgit.critic` asks for has the sizes of the model's MaskGIT, unless the model
    states a token critic of its own.
    """

    OLD_NAMES = (("recompute", "remat"),)

    stage: str = dataclasses.field(
        metadata={RANGE: Range(choices=("ctvit", "t5", "maskgit", "superres"))}
    )
    model: ModelConfig
    dtype: str = choice("float32", ("float32", "bfloat16"))
    remat: bool = False
    optimizer: OptimizerConfig = OptimizerConfig()
    loop: LoopConfig = LoopConfig()
    data: DataConfig = DataConfig()
    ctvit: CTViTTraining = CTViTTraining()
    t5: T5Training = T5Training()
    maskgit: MaskGitTraining = MaskGitTraining()
    superres: SuperResTraining = SuperResTraining()

    def __post_init__(self) -> None:
        super().__post_init__()
        kind, model = self.maskgit.critic, self.model
        if self.stage != "maskgit" or kind == "none" or model.maskgit is None:
            return
        if kind == "self" or model.critic is None or model.critic.kind != kind:
            critic = CriticConfig(**dataclasses.asdict(model.maskgit), kind=kind)
            object.__setattr__(self, "model", dataclasses.replace(model, critic=critic))
