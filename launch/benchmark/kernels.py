"""What each special case for a CPU gains: the kernel as a CPU runs it, beside the plain operation.

    python -m launch.benchmark.kernels --out benchmarks/cpu_kernels.md

Both are timed in one process, in turn; a row gives the medians of `--calls` calls of the forward
pass and of the gradient with respect to all inputs. The plain operation is the same function traced
for another platform, or the library's own. Sizes are those of the published networks.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gct_jax.runtime.exit_codes import exit_code


class Case(NamedTuple):
    """A kernel, the plain operation, shapes of the inputs, and whether it is differentiated."""

    name: str
    fast: Callable
    plain: Callable
    shapes: tuple[tuple[int, ...], ...]
    gradient: bool = True


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="launch.benchmark.kernels", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/cpu_kernels.md"))
    parser.add_argument("--calls", type=int, default=7)
    options = parser.parse_args(arguments)

    def command() -> None:
        from gct_jax.runtime.files import replace_when_done
        from gct_jax.runtime.numerics import prepare_jax

        prepare_jax("launch.benchmark.kernels")
        text = table(cases(), options.calls)
        with replace_when_done(options.out) as path:
            path.write_text(text, encoding="utf-8")
        print(text)

    return exit_code("launch.benchmark.kernels", command)


def cases() -> Iterator[Case]:
    """Every kernel that a CPU runs otherwise."""
    import jax
    import jax.numpy as jnp

    from gct_jax.kernels import argmax, convolution, folded_attention, gelu, linear
    from gct_jax.kernels.attention import attention
    from gct_jax.kernels.bias import RelativeBias
    from gct_jax.kernels.target import tracing_for

    def elsewhere(function: Callable) -> Callable:
        def plain(*arrays):
            with tracing_for("gpu"):
                return function(*arrays)

        return plain

    def case(name: str, function: Callable, *shapes: tuple[int, ...], **options) -> Case:
        return Case(name, function, elsewhere(function), shapes, **options)

    def convolve(strides: tuple[int, int]) -> Callable:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return lambda x, w: convolution.convolution(
            x, w, strides, "SAME", dimension_numbers=dimensions
        )

    one = convolve((1, 1))
    yield case("3x3 by Winograd, 128 channels", one, (1, 128, 128, 128), (3, 3, 128, 128))
    yield case("3x3, 64 channels", one, (1, 256, 256, 64), (3, 3, 64, 64))
    yield case("7x7 of one channel", one, (1, 512, 512, 1), (7, 7, 1, 32))
    yield case("2x2 of stride 2", convolve((2, 2)), (1, 512, 512, 64), (2, 2, 64, 64))
    yield case(
        "depthwise 3x3x3",
        lambda x, w, b: convolution.depthwise(x, w, b, past=2),
        *((1, 101, 8, 8, 512), (3, 3, 3, 512), (512,)),
    )
    yield case("argmax of 8,192", argmax.argmax, (6464, 8192), gradient=False)

    def attend(q, k, v, bias):
        return attention(q, k, v, scale=8.0, bias=RelativeBias(bias, (26, 8, 8)), null_keys=2)

    rows, pairs = (1, 1664, 8, 64), (1, 1666, 8, 64)
    yield case("attention of 1,664 tokens", attend, rows, pairs, pairs, (8, 51, 15, 15))

    def spatial(q, k, v, bias):
        return attention(q, k, v, scale=8.0, bias=RelativeBias(bias, (1, 8, 8)))

    frames = (101, 64, 8, 32)
    yield case("attention of 64 tokens, 101 frames", spatial, *[frames] * 3, (8, 1, 15, 15))
    yield Case(
        "attention to 13 tokens, folded",
        folded_attention.folded_attend,
        _projected_attention,
        ((1, 4096, 256), (1, 13, 8, 64), (1, 13, 8, 64), (256, 512), (512, 256)),
    )
    yield Case("gelu", gelu.gelu, lambda x: jax.nn.gelu(x, approximate=False), ((6464, 1365),))
    yield Case(
        "product, axes joined",
        linear.matrix_product,
        lambda x, w: jnp.einsum("tyxi,io->tyxo", x, w),
        ((26, 8, 8, 512), (512, 1365)),
    )


def _projected_attention(x, key, value, query_kernel, out_kernel):
    import jax
    from einops import rearrange

    query = rearrange(x @ query_kernel, "b n (h d) -> b n h d", h=key.shape[2])
    out = jax.nn.dot_product_attention(query, key, value)
    return rearrange(out, "b n h d -> b n (h d)") @ out_kernel


def table(chosen: Iterator[Case], calls: int) -> str:
    """Markdown: milliseconds of both, and how many times faster the special case is."""
    import jax

    from gct_jax.generation import device_name

    lines = [
        "# What each special case for a CPU gains",
        "",
        f"`python -m launch.benchmark.kernels --calls {calls}` on {device_name()}, "
        f"JAX {jax.__version__}: medians in ms, both timed in turn in one process.",
        "",
        "| case | forward | plain | times | gradient | plain | times |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case in chosen:
        cells = []
        for gradient in (False, True)[: 2 if case.gradient else 1]:
            fast, plain = _medians_ms(case, gradient, calls)
            cells += [f"{fast:.3g}", f"{plain:.3g}", f"{plain / fast:.2f}"]
        cells += ["-"] * (6 - len(cells))
        lines.append(f"| {case.name} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines) + "\n"


def _medians_ms(case: Case, gradient: bool, calls: int) -> tuple[float, float]:
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    inputs = [jax.numpy.asarray(rng.normal(size=s), "float32") for s in case.shapes]

    def program(function: Callable) -> Callable:
        if not gradient:
            return jax.jit(lambda *arrays: function(*arrays))

        def loss(*arrays):
            return (function(*arrays).astype("float32") ** 2).sum()

        return jax.jit(jax.grad(loss, argnums=tuple(range(len(inputs)))))

    programs = [program(case.fast), program(case.plain)]
    for run in programs:
        jax.block_until_ready(run(*inputs))
    seconds: list[list[float]] = [[], []]
    for _ in range(calls):
        for taken, run in zip(seconds, programs, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(*inputs))
            taken.append(time.perf_counter() - start)
    fast, plain = (1000 * statistics.median(taken) for taken in seconds)
    return fast, plain


if __name__ == "__main__":
    sys.exit(main())
