"""Measure how well the demo model follows its prompts, on prompts and patients it has not seen.

    python -m launch.demo.evaluate --out out/evaluation

Writes table.md, metrics.json and montage.png. Generated volumes are kept in OUT/volumes, so that
an interrupted run continues. Training uses case seeds below 1,000,000,000, this from 2,000,000,000.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gct_jax.commands.argument_types import count, weight
from gct_jax.runtime.exit_codes import exit_code
from launch.extras import require_extras

FIRST_SEED = 2_000_000_000
SWAP_SEEDS = 8
MONTAGE_ROWS = 8


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="launch.demo.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="model folder (the demo model)")
    parser.add_argument("--prompts", type=int, default=200, help="held-out cases (200)")
    parser.add_argument("--seed", type=int, default=0, help="added to the first case seed (0)")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation"))
    parser.add_argument("--guidance", type=weight, help="instead of the model's")
    parser.add_argument("--temperature", type=weight, help="instead of the model's")
    parser.add_argument("--steps", type=count, help="token decoding steps instead of the model's")
    parser.add_argument(
        "--compare-steps",
        type=count,
        nargs="+",
        default=[],
        metavar="N",
        help="also generate every prompt in so many token decoding steps",
    )
    parser.add_argument(
        "--superres", type=int, default=8, metavar="N", help="super-resolve slices of N cases (8)"
    )
    options = parser.parse_args(arguments)
    if options.prompts < 2 or options.seed < 0 or options.superres < 0:
        parser.error("--prompts must be at least 2, --seed and --superres at least 0")

    def command() -> None:
        require_extras("evaluate")
        print(evaluate(options))

    return exit_code("launch.demo.evaluate", command)


def evaluate(options: argparse.Namespace) -> str:
    """Everything; returns the Markdown tables after writing all files."""
    from data_pipelines.phantom.case import case_from_findings, sample_case
    from data_pipelines.phantom.report import write_report
    from gct_jax.model_folder import demo_folder, load_model
    from gct_jax.runtime.files import replace_when_done
    from gct_jax.runtime.numerics import prepare_jax
    from gct_jax.sampling.cascade import require_generator
    from gct_jax.sampling.settings import choose_settings
    from launch.demo import measures as measures
    from launch.demo import tables as tables
    from launch.demo import volumes as volumes
    from launch.grids import high_grid, low_grid

    prepare_jax("launch.demo.evaluate")
    model = load_model(options.model or demo_folder())
    require_generator(model.config, superres=options.superres > 0)
    settings = choose_settings(
        model.config,
        steps=options.steps,
        temperature=options.temperature,
        guidance=options.guidance,
        superres=False,
    )
    low, high = low_grid(model.config), high_grid(model.config)
    spacing = low.spacing_mm
    generate = volumes.Generator(model, settings, options.out / "volumes")

    first = FIRST_SEED + options.seed
    cases = [sample_case(first + number) for number in range(options.prompts)]
    prompts = [write_report(case, np.random.default_rng(case.seed)) for case in cases]
    generated = generate(prompts, [case.seed for case in cases], "generated")
    phantoms = volumes.render_cases(cases, low, "phantoms")
    rebuilt = volumes.rebuild(model, phantoms, "rebuilt")
    detections = {
        source: measures.detect_all(hu, spacing, f"detectors: {source}")
        for source, hu in (("generated", generated), ("phantom", phantoms), ("ctvit", rebuilt))
    }
    quality = {f"CT-ViT, {' x '.join(map(str, low.shape))}": measures.quality(phantoms, rebuilt)}
    if options.superres:
        quality |= _superres_quality(model, settings, cases, prompts, rebuilt, high, options)

    findings = measures.finding_rows(cases, detections, options.seed)
    sides = measures.side_rows(cases, detections)
    by_steps = {settings.steps: measures.fidelity(findings, sides)}
    for steps in {*options.compare_steps} - {settings.steps}:
        sample = volumes.Generator(
            model, dataclasses.replace(settings, steps=steps), options.out / "volumes"
        )
        made = sample(prompts, [case.seed for case in cases], f"{steps} steps")
        found = {"generated": measures.detect_all(made, spacing, f"detectors: {steps} steps")}
        by_steps[steps] = measures.fidelity(
            measures.finding_rows(cases, found, options.seed), measures.side_rows(cases, found)
        )
    compared = [{"steps": steps, **by_steps[steps]} for steps in sorted(by_steps)]

    swaps, diversity = [], []
    seeds = [first + number for number in range(SWAP_SEEDS)]
    for swap in measures.SWAPS:
        before, after = (generate([p] * SWAP_SEEDS, seeds, p) for p in swap.prompts)
        swaps.append(measures.swap_row(swap, before, after, spacing))
        patients = [
            case_from_findings(seed, measures.AGE, measures.SEX, swap.findings) for seed in seeds
        ]
        real = volumes.render_cases(patients, low, "phantoms of the same prompt")
        diversity.append(measures.diversity_row(swap.before, before, real))

    assert model.tokenizer and model.config.t5
    length = model.config.t5.max_length
    cut = sum(bool(model.tokenizer.encode(prompt, length).truncated_text) for prompt in prompts)
    results: dict[str, Any] = {
        "run": {
            "model": model.config.name,
            "sha256": model.sha256,
            "prompts": len(prompts),
            "cut_prompts": cut,
            "first_seed": first,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "temperature": settings.temperature,
        },
        "findings": findings,
        "sides": sides,
        "steps": compared if options.compare_steps else [],
        "quality": quality,
        "swaps": swaps,
        "diversity": diversity,
    }
    text = tables.markdown(results)
    for name, content in (("table.md", text), ("metrics.json", json.dumps(results, indent=2))):
        with replace_when_done(options.out / name) as path:
            path.write_text(content, encoding="utf-8")
    shown = slice(min(MONTAGE_ROWS, len(prompts)))
    tables.save_montage(options.out / "montage.png", generated[shown], prompts[shown])
    return text


def _superres_quality(
    model: Any,
    settings: Any,
    cases: list,
    prompts: list[str],
    rebuilt: np.ndarray,
    high: Any,
    options: argparse.Namespace,
) -> dict:
    """Slices of CT-ViT's reconstructions, enlarged by the U-Net and by interpolation."""
    from launch.demo import measures as measures
    from launch.demo import volumes as volumes

    count = min(options.superres, len(cases))
    rows = [high.shape[0] // 3, high.shape[0] // 2]
    true = volumes.render_cases(cases[:count], high, "phantoms, high resolution")[:, rows]
    small = rebuilt[:count, rows]
    made = [
        volumes.enlarge(model, slices, prompt, case.seed, settings)
        for slices, prompt, case in zip(small, prompts, cases, strict=False)
    ]
    plain = [measures.interpolate(slices, high.shape[2]) for slices in small]
    title = f"slices of {high.shape[1]} x {high.shape[2]}"
    return {
        f"{title}, super-resolved": measures.quality(np.concatenate(true), np.concatenate(made)),
        f"{title}, interpolated": measures.quality(np.concatenate(true), np.concatenate(plain)),
    }


if __name__ == "__main__":
    sys.exit(main())
