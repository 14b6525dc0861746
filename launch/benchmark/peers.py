"""The peers' side: the same case by PyTorch packages that are installed apart (tests/peers.txt).

They run as fast as they can as they are: all cores, inference mode, fused Adam, and the U-Net in
the memory layout in which it is faster here.
"""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from gct_jax.config import ModelConfig, module_fields
from launch.benchmark.cases import SIZES, Case
from launch.benchmark.measure import best_seconds
from launch.benchmark.peer_imports import peer_module

ADAM = {"lr": 3e-5, "betas": (0.9, 0.99), "eps": 1e-8, "fused": True}


def build(model: ModelConfig, part: str) -> torch.nn.Module:
    """The peer's network of the same architecture, with weights of its own."""
    if part == "superres":
        assert model.superres
        options = module_fields(model.superres)
        ours_alone = (
            "cross_embed_downsample_kernel_sizes",
            "init_cross_embed_kernel_sizes",
            "mid_cross_attn_dim_head",
            "mid_cross_attn_heads",
            "layer_attns",
        )
        options = {name: value for name, value in options.items() if name not in ours_alone}
        with peer_module("imagen_pytorch") as imagen:
            unet: torch.nn.Module = imagen.Unet(**options, layer_attns=False)
        return unet
    with peer_module("phenaki_pytorch") as phenaki:
        return _phenaki_network(phenaki, model, part)


def _phenaki_network(phenaki: Any, model: ModelConfig, part: str) -> torch.nn.Module:
    if part == "maskgit":
        assert model.maskgit
        fields = module_fields(model.maskgit)
        fields["max_seq_len"] = fields.pop("max_sequence_length")
        fields["dim_context"] = fields.pop("context_dim")
        del fields["ff_dim"]  # it is as published
        maskgit: torch.nn.Module = phenaki.MaskGit(**fields)
        return maskgit
    assert model.ctvit
    fields = module_fields(model.ctvit)
    for name in ("temporal_attention", "temporal_peg", "patch_norm"):
        del fields[name]
    ctvit: torch.nn.Module = phenaki.CViViT(
        **fields, image_size=model.volume.image_size, use_vgg_and_gan=False
    )
    return ctvit


def load_call(
    case: Case, model: ModelConfig, weights: Path, inputs: Path, threads: int, dtype: str
) -> tuple[Callable[[], Any], float]:
    """The case as a call without arguments, and the operations that PyTorch counts in one.

    In 16 bits by `torch.autocast`, which like our networks keeps weights, norms and softmax in
    float32.
    """
    torch.set_num_threads(threads)
    network = build(model, case.part).train(case.task == "train")
    network.load_state_dict(load_file(weights), strict=True)
    with np.load(inputs) as arrays:
        batch = {name: _channels_first(name, value) for name, value in arrays.items()}
    mixed = functools.partial(
        torch.autocast, "cpu", getattr(torch, dtype), enabled=dtype != "float32"
    )
    if case.task == "train":
        call = counted = _backward_call(case, network, batch, mixed)
    else:
        call = _forward_call(case, network, batch, mixed, torch.inference_mode)
        # In inference mode the counter, which takes group norms apart, fails in 16 bits.
        counted = _forward_call(case, network, batch, mixed, torch.no_grad)
    with FlopCounterMode(display=False) as counter:
        counted()
    if case.part == "superres":
        _choose_layout(network, batch, call)
    if case.task == "train":
        network.load_state_dict(
            load_file(weights), strict=True
        )  # those calls have moved the codebook
        optimizer = torch.optim.Adam(network.parameters(), **ADAM)  # type: ignore[arg-type]
        call = _train_call(call, optimizer)
    return call, float(counter.get_total_flops())


def _channels_first(name: str, value: np.ndarray) -> torch.Tensor:
    if name in ("volume", "x", "low_res", "target"):
        value = np.ascontiguousarray(np.moveaxis(value, -1, 1))
    tensor = torch.from_numpy(value)
    return tensor.long() if name == "ids" else tensor


def _forward(case: Case, network: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    if case.task == "encode":
        return network(batch["volume"], return_only_codebook_ids=True)
    if case.task == "decode":
        return network.decode_from_codebook_indices(batch["ids"])
    if case.part == "maskgit":
        return network(batch["ids"], context=batch["context"], text_mask=batch["context_mask"])
    return network(
        batch["x"],
        batch["log_snr"],
        lowres_cond_img=batch["low_res"],
        lowres_noise_times=batch["low_res_log_snr"],
        text_embeds=batch["text"],
        text_mask=batch["text_mask"],
    )


def _forward_call(
    case: Case,
    network: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    mixed: Callable[[], Any],
    without_gradients: Callable[[], Any],
) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with without_gradients(), mixed():
            return _forward(case, network, batch)

    return call


def _loss(case: Case, network: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    if case.part == "ctvit":
        loss: torch.Tensor = network(batch["volume"])  # without a discriminator: squared error
        return loss
    if case.part == "maskgit":
        hidden = batch["hidden"]
        shown = batch["ids"].masked_fill(hidden, network.mask_id)
        logits = _forward(case, network, {**batch, "ids": shown})
        return F.cross_entropy(logits[hidden.flatten(1)], batch["ids"][hidden])
    return F.mse_loss(_forward(case, network, batch), batch["target"])


def _backward_call(
    case: Case,
    network: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    mixed: Callable[[], Any],
) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        network.zero_grad(set_to_none=True)
        with mixed():
            loss = _loss(case, network, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return call


def _train_call(
    backward: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        loss = backward()
        optimizer.step()
        return loss

    return call


def _choose_layout(
    network: torch.nn.Module, batch: dict[str, torch.Tensor], call: Callable[[], Any]
) -> None:
    """Leave the network in the faster one of PyTorch's two memory layouts of images."""
    images = [name for name, value in batch.items() if value.ndim == 4]
    seconds: dict[torch.memory_format, float] = {}
    for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        if layout in seconds and seconds[layout] > seconds[torch.channels_last]:
            continue  # the last turn goes back to the first layout only if that was faster
        network.to(memory_format=layout)  # type: ignore[call-overload]
        batch |= {name: batch[name].contiguous(memory_format=layout) for name in images}
        start = time.perf_counter()
        call()
        seconds[layout] = time.perf_counter() - start


def ceiling(sizes: str, threads: int, dtype: str, repeats: int = 5) -> dict[str, float]:
    """As `ours.ceiling`."""
    numbers = getattr(torch, dtype)
    torch.set_num_threads(threads)
    found = {"matmul": 0.0, "convolution": 0.0}
    with torch.inference_mode():
        for n in SIZES[sizes].matmul_sides:
            a = torch.ones(n, n, dtype=numbers)
            seconds = best_seconds(functools.partial(torch.matmul, a, a), repeats)
            found["matmul"] = max(found["matmul"], 2 * n**3 / seconds)
        for side, channels in SIZES[sizes].convolutions:
            for layout in (torch.contiguous_format, torch.channels_last):
                image = torch.ones(1, channels, side, side, dtype=numbers)
                kernel = torch.ones(channels, channels, 3, 3, dtype=numbers)
                image = image.contiguous(memory_format=layout)
                kernel = kernel.contiguous(memory_format=layout)
                convolve = functools.partial(F.conv2d, image, kernel, padding=1)
                seconds = best_seconds(convolve, repeats)
                flops = 2 * 9 * side**2 * channels**2
                found["convolution"] = max(found["convolution"], flops / seconds)
    return found
