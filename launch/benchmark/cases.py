"""What is measured: networks, their sizes and the shapes of their inputs."""

import dataclasses

from gct_jax.config import (
    CTViTConfig,
    DiffusionConfig,
    MaskGitConfig,
    ModelConfig,
    UNetConfig,
    VolumeConfig,
)
from gct_jax.errors import InputError

# The only arithmetic that the peer's CT-ViT knows; `interop.generatect.ctvit` has the reasons.
PEER_CTVIT = {
    "temporal_attention": "bidirectional",
    "temporal_peg": "interleaved",
    "patch_norm": "both",
}
TEXT_TOKENS = 60  # of a prompt; the rest up to the text encoder's limit is padding
DEMO = "generate_demo"
CEILING = "ceiling"


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
      name: for `--only` and the JSON.
      title: for the table.
      part: network, see `gct_jax.components`; "demo" is the whole command with the demo model.
      task: "forward", "encode", "decode", "train" (forward, backward, Adam; layers are computed
        again in the backward pass, as in configs/base.py), or "generate".
      frames: token frames of a MaskGIT input.
      peer: package to compare with, None for ours alone.
    """

    name: str
    title: str
    part: str
    task: str
    frames: int = 0
    peer: str | None = None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Architecture and cases of one choice of `--sizes`."""

    model: ModelConfig
    cases: tuple[Case, ...]
    matmul_sides: tuple[int, ...]
    convolutions: tuple[tuple[int, int], ...]  # (image side, channels)


def choose(sizes: str, only: list[str] | None) -> tuple[ModelConfig, list[Case]]:
    """The model and the cases to measure, in the order of the table.

    Raises:
      InputError: `only` names a case that there is not.
    """
    chosen = SIZES[sizes]
    unknown = sorted(set(only or ()) - {case.name for case in chosen.cases})
    if unknown:
        names = ", ".join(case.name for case in chosen.cases)
        raise InputError(f"there is no case {unknown[0]!r}; the cases are {names}")
    return chosen.model, [case for case in chosen.cases if only is None or case.name in only]


def _maskgit(task: str, frames: int, tokens_per_frame: int) -> Case:
    tokens = frames * tokens_per_frame
    title = {"forward": "MaskGIT forward", "train": "MaskGIT training step"}[task]
    return Case(
        f"maskgit_{task}_{tokens}",
        f"{title}, {tokens:,} tokens",
        "maskgit",
        task,
        frames,
        "phenaki-pytorch",
    )


def _cases(volume: str, image: str, frames: tuple[int, ...], per_frame: int) -> tuple[Case, ...]:
    """Cases of a model with volumes, images and token frames as said."""
    phenaki, imagen = "phenaki-pytorch", "imagen-pytorch"
    return (
        *(_maskgit("forward", count, per_frame) for count in frames),
        Case("ctvit_encode", f"CT-ViT encode, {volume}", "ctvit", "encode", peer=phenaki),
        Case("ctvit_decode", f"CT-ViT decode, {volume}", "ctvit", "decode", peer=phenaki),
        Case("unet_forward", f"U-Net step, {image}", "superres", "forward", peer=imagen),
        _maskgit("train", frames[0], per_frame),
        _maskgit("train", frames[-1], per_frame),
        Case("ctvit_train", f"CT-ViT training step, {volume}", "ctvit", "train", peer=phenaki),
        Case("unet_train", f"U-Net training step, {image}", "superres", "train", peer=imagen),
        Case(DEMO, "generate, demo model, whole command", "demo", "generate"),
    )


PUBLISHED = Sizes(
    model=ModelConfig(ctvit=dataclasses.replace(CTViTConfig(), **PEER_CTVIT)),  # type: ignore[arg-type]
    cases=_cases("201 x 128 x 128", "512 x 512", (26, 51, 101), 64),
    matmul_sides=(1024, 2048, 4096),
    convolutions=((256, 64), (128, 128), (64, 256)),
)
TINY = Sizes(
    model=ModelConfig(
        name="tiny",
        volume=VolumeConfig(slices=5, image_size=16),
        ctvit=CTViTConfig(
            dim=16,
            codebook_size=32,
            patch_size=8,
            spatial_depth=1,
            temporal_depth=1,
            heads=2,
            dim_head=8,
            **PEER_CTVIT,  # type: ignore[arg-type]
        ),
        maskgit=MaskGitConfig(
            num_tokens=32,
            max_sequence_length=24,
            dim=16,
            context_dim=24,
            depth=2,
            heads=2,
            dim_head=8,
        ),
        superres=UNetConfig(
            dim=8,
            dim_mults=(1,),
            num_resnet_blocks=(1,),
            layer_attns=("none",),
            layer_attns_depth=(1,),
            layer_cross_attns=(True,),
            resnet_groups=(8,),
            attn_heads=2,
            attn_dim_head=8,
            text_embed_dim=24,
            max_text_len=64,
            attn_pool_num_latents=6,
        ),
        diffusion=DiffusionConfig(image_size=32),
    ),
    cases=_cases("5 x 16 x 16", "32 x 32", (2, 3), 4),
    matmul_sides=(128,),
    convolutions=((16, 8),),
)
SIZES = {"published": PUBLISHED, "tiny": TINY}
