"""Measure solvers, numbers of steps and noise of the super-resolution on phantoms not seen before.

    python -m launch.studies.superres --out out/superres_study

Writes superres_study.md, .png and .json. Low-resolution slices are CT-ViT's reconstructions, as in
training. Training uses case seeds below 1,000,000,000, this from 1,600,000,000.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gct_jax.config import SUPERRES_SOLVERS
from gct_jax.errors import InputError
from gct_jax.random_keys import random_key
from gct_jax.runtime.exit_codes import exit_code
from launch.extras import require_extras

FIRST_SEED = 1_600_000_000
STEPS = (2, 4, 5, 6, 8, 10, 20, 25, 50)
NOISE_CORRELATIONS_MM = (0.0, 18.0, 36.0, 72.0, 144.0, 10_000.0)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line for input that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="launch.studies.superres",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="model folder (the demo model)")
    parser.add_argument("--cases", type=int, default=3, help="held-out cases (3)")
    parser.add_argument("--slices", type=int, default=1, help="slices per case, solvers (1)")
    parser.add_argument(
        "--depth-slices", type=int, default=9, help="neighbours per case, noise (9)"
    )
    parser.add_argument("--fine-steps", type=int, default=1200, help="of the exact solution (1200)")
    parser.add_argument("--out", type=Path, default=Path("out/superres_study"))
    options = parser.parse_args(arguments)
    if min(options.cases, options.slices) < 1 or options.depth_slices < 2:
        parser.error("--cases and --slices must be at least 1, --depth-slices at least 2")
    if not _step_counts(options.fine_steps):
        parser.error(f"--fine-steps must be a multiple of one of {', '.join(map(str, STEPS))}")

    def command() -> None:
        require_extras("evaluate")
        print(study(options))

    return exit_code("launch.studies.superres", command)


def _step_counts(fine_steps: int) -> list[int]:
    """Those of `STEPS` whose path of noise can be made of that of the fine steps."""
    return [steps for steps in STEPS if fine_steps % steps == 0 and steps < fine_steps]


def study(options: argparse.Namespace) -> str:
    """Everything; returns the Markdown tables after writing all files."""
    from gct_jax.model_folder import demo_folder, load_model
    from gct_jax.runtime.files import replace_when_done
    from gct_jax.runtime.numerics import prepare_jax
    from gct_jax.sampling.cascade import require_generator

    prepare_jax("launch.studies.superres")
    model = load_model(options.model or demo_folder())
    require_generator(model.config, superres=True)
    unet = model.config.superres
    if unet is None or unet.text_embed_dim is None:
        raise InputError(f"the U-Net of model '{model.config.name}' reads no text")
    depth = model.config.volume.slices
    if max(options.slices, options.depth_slices) > depth:
        raise InputError(f"the volumes of model '{model.config.name}' have {depth} slices")
    cases = Phantoms(model, options.cases)
    results: dict[str, Any] = {
        "model": model.config.name,
        "sha256": model.sha256,
        "first_seed": FIRST_SEED,
        "cases": options.cases,
        "slices": options.slices,
        "depth_slices": options.depth_slices,
        "fine_steps": options.fine_steps,
        "default": {
            "solver": model.config.sampling.superres_solver,
            "steps": model.config.sampling.superres_steps,
            "noise_correlation_mm": model.config.sampling.superres_noise_correlation_mm,
        },
        "interpolated": cases.interpolated(cases.middle(options.slices)),
        "solvers": cases.solver_rows(options.slices, options.fine_steps),
        "interpolated_depth": cases.interpolated(cases.middle(options.depth_slices)),
        "noise": cases.noise_rows(options.depth_slices),
    }
    from launch.studies.superres_tables import markdown, save_curves

    text = markdown(results)
    for suffix, content in ((".md", text), (".json", json.dumps(results, indent=2) + "\n")):
        with replace_when_done(options.out / f"superres_study{suffix}") as path:
            path.write_text(content, encoding="utf-8")
    save_curves(options.out / "superres_study.png", results)
    return text


class Phantoms:
    """Held-out cases: rendered at high resolution, rebuilt by CT-ViT at low resolution, and what
    the model makes of the latter."""

    def __init__(self, model: Any, count: int):
        import jax
        import jax.numpy as jnp

        from data_pipelines.phantom.case import sample_case
        from data_pipelines.phantom.report import write_report
        from gct_jax.components import build_component
        from gct_jax.sampling.cascade import SUPERRES_STAGE, embed_text
        from launch.demo import volumes as volumes
        from launch.grids import high_grid, low_grid

        low, self.high = low_grid(model.config), high_grid(model.config)
        cases = [sample_case(FIRST_SEED + number) for number in range(count)]
        phantoms = volumes.render_cases(cases, low, "phantoms, low resolution")
        self.model, self.depth = model, low.shape[0]
        self.low_hu = volumes.rebuild(model, phantoms, "CT-ViT")  # [cases, depth, h, w]
        self.true_hu = volumes.render_cases(cases, self.high, "phantoms, high resolution")
        prompts = [write_report(case, np.random.default_rng(case.seed)) for case in cases]
        text_ids = model.tokenizer.encode_batch(prompts, model.config.t5.max_length)
        self.text = embed_text(model.variables("t5"), text_ids, config=model.config)
        self.text_mask = jnp.asarray(text_ids > 0)
        self.keys = jnp.stack(
            [jax.random.fold_in(random_key(case.seed), SUPERRES_STAGE) for case in cases]
        )
        self.unet = jax.tree_util.Partial(
            build_component(model.config, "superres").apply, model.variables("superres")
        )

    def middle(self, count: int) -> slice:
        """The `count` slices in the middle of the depth."""
        first = (self.depth - count) // 2
        return slice(first, first + count)

    def interpolated(self, rows: slice) -> dict[str, Any]:
        """Linear interpolation of the low resolution, for comparison."""
        from launch.demo.measures import interpolate
        from launch.studies.superres_measures import agreement, depth_agreement

        made = np.stack([interpolate(hu[rows], self.high.shape[2]) for hu in self.low_hu])
        true = self.true_hu[:, rows]
        if made.shape[1] > 1:
            return depth_agreement(true, made)
        return agreement(true[:, 0], made[:, 0])

    def solver_rows(self, count: int, fine_steps: int) -> list[dict[str, Any]]:
        """A row per solver and number of steps, and each solver's own solution in fine steps."""
        import jax.numpy as jnp
        from tqdm import tqdm

        from gct_jax.volumes.intensity import from_unit, to_unit
        from launch.studies.superres_measures import Slices, agreement, rmse, solve_on_path

        rows = self.middle(count)
        volume, number = np.divmod(np.arange(len(self.low_hu) * count), count)
        true = self.true_hu[volume, number + rows.start]
        slices = Slices(
            jnp.asarray(to_unit(self.low_hu[volume, number + rows.start])[..., None]),
            jnp.asarray(number + rows.start),
            self.keys[volume],
            self.text[volume],
            self.text_mask[volume],
        )
        table = []
        for solver in SUPERRES_SOLVERS:

            def made(steps: int, solver: str = solver) -> np.ndarray:
                enlarged = solve_on_path(
                    self.unet,
                    slices,
                    self.model.config.diffusion,
                    solver=solver,
                    guidance=self.model.config.sampling.superres_guidance,
                    steps=steps,
                    fine_steps=fine_steps,
                )
                return from_unit(enlarged[..., 0])

            exact = made(fine_steps)
            for steps in tqdm([*_step_counts(fine_steps), fine_steps], desc=solver):
                result = exact if steps == fine_steps else made(steps)
                row = {"solver": solver, "steps": steps, "own_rmse_hu": rmse(result, exact)}
                table.append(row | agreement(true, result))
        return table

    def noise_rows(self, count: int) -> list[dict[str, Any]]:
        """A row per correlation length of the noise, at the model's default solver and steps."""
        from tqdm import tqdm

        from gct_jax.sampling.settings import superres_settings
        from gct_jax.sampling.superres import super_resolve_slices
        from gct_jax.volumes.intensity import from_unit, to_unit
        from launch.studies.superres_measures import depth_agreement

        rows = self.middle(count)
        sampling = self.model.config.sampling
        table = []
        for depth_mm in tqdm(NOISE_CORRELATIONS_MM, desc="noise"):
            chosen = dataclasses.replace(sampling, superres_noise_correlation_mm=depth_mm)
            made = super_resolve_slices(
                self.unet,
                to_unit(self.low_hu[:, rows])[..., None],
                self.text,
                self.text_mask,
                self.keys,
                superres_settings(self.model.config, chosen),
            )
            agreed = depth_agreement(self.true_hu[:, rows], from_unit(made[..., 0]))
            table.append({"noise_correlation_mm": depth_mm, **agreed})
        return table


if __name__ == "__main__":
    sys.exit(main())
