"""The super-resolution study's results as Markdown and as curves."""

from pathlib import Path
from typing import Any

from launch.markdown import markdown_table
from launch.studies.line_chart import Panel, save_line_charts

BASELINE = ("ancestral", 25)


def markdown(results: dict[str, Any]) -> str:
    """Everything that was measured, as tables."""
    return (
        "\n\n".join([_header(results), _solvers(results), _verdict(results), _noise(results)])
        + "\n"
    )


def _header(results: dict[str, Any]) -> str:
    default = results["default"]
    return (
        f"# Super-resolution of model '{results['model']}': solvers, steps and noise\n\n"
        f"{results['cases']} phantoms that no stage has seen (case seeds from "
        f"{results['first_seed']}), model {results['sha256'][:12]}, low resolution as CT-ViT "
        f"rebuilds it. The model's default: {default['solver']}, {default['steps']} steps, noise "
        f"that is correlated over {default['noise_correlation_mm']:g} mm.\n\n"
        "![Error against network calls](superres_study.png)"
    )


def _solvers(results: dict[str, Any]) -> str:
    table = [["solver", "network calls", "RMSE to own solution, HU", *AGREEMENT_HEADS]]
    for row in results["solvers"]:
        own = "0 (is it)" if row["steps"] == results["fine_steps"] else f"{row['own_rmse_hu']:.1f}"
        table.append([row["solver"], str(row["steps"]), own, *_agreement(row)])
    table.append(["linear interpolation", "0", "", *_agreement(results["interpolated"])])
    return (
        "## Error against network calls\n\n"
        f'{results["slices"]} slices of each phantom. "Own solution": the same solver in '
        f"{results['fine_steps']} steps along the same path of noise, which for ancestral sampling "
        "includes the noise drawn in the steps. Sharpness: energy of the gradients within a slice "
        f"over the phantom's.\n\n{markdown_table(table)}"
    )


def _verdict(results: dict[str, Any]) -> str:
    """The default beside 25 ancestral steps, in every figure of both."""
    default = results["default"]
    rows = {(row["solver"], row["steps"]): row for row in results["solvers"]}
    ours, baseline = rows.get((default["solver"], default["steps"])), rows.get(BASELINE)
    if ours is None or baseline is None:
        return (
            "The default's number of steps, or 25, does not divide the fine steps: no comparison."
        )
    judged = {
        "error to the own solution": ours["own_rmse_hu"] <= baseline["own_rmse_hu"],
        "RMSE to the phantom": ours["rmse_hu"] <= baseline["rmse_hu"],
        "SSIM": ours["ssim"] >= baseline["ssim"],
        "sharpness": ours["sharpness"] >= baseline["sharpness"],
    }
    better = [name for name, good in judged.items() if good]
    worse = [name for name, good in judged.items() if not good]
    return (
        f"The default ({default['solver']}, {default['steps']} calls) against 25 ancestral steps: "
        f"not worse in {', '.join(better) or 'nothing'}; worse in {', '.join(worse) or 'nothing'}."
    )


def _noise(results: dict[str, Any]) -> str:
    heads = ["correlation of the noise", "slice-to-slice RMSE, HU", "energy", "true change kept"]
    table = [[*heads, *AGREEMENT_HEADS]]
    for row in results["noise"]:
        length_mm = row["noise_correlation_mm"]
        depth = f"{length_mm:g} mm" if length_mm else "independent"
        table.append([depth, *_steps(row), *_agreement(row)])
    plain = results["interpolated_depth"]
    table.append(["linear interpolation", *_steps(plain), *_agreement(plain)])
    default = results["default"]
    return (
        "## Noise that is correlated along the depth\n\n"
        f"{results['depth_slices']} neighbouring slices of each phantom, {default['solver']}, "
        f"{default['steps']} steps. Slice-to-slice: differences of neighbouring slices, their "
        "error, their energy over the phantom's, and the share of the phantom's differences found "
        "in them (smearing along the depth lowers it, flicker does not).\n\n"
        f"{markdown_table(table)}"
    )


AGREEMENT_HEADS = ("RMSE to phantom, HU", "PSNR, dB", "SSIM", "sharpness")


def _agreement(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['rmse_hu']:.1f}",
        f"{row['psnr']:.2f}",
        f"{row['ssim']:.3f}",
        f"{row['sharpness']:.3f}",
    ]


def _steps(row: dict[str, Any]) -> list[str]:
    return [
        f"{row['step_rmse_hu']:.1f}",
        f"{row['step_energy']:.3f}",
        f"{row['step_kept']:.3f}",
    ]


def save_curves(path: Path, results: dict[str, Any]) -> None:
    """PNG: three measures against network calls, a line per solver."""
    fine, plain = results["fine_steps"], results["interpolated"]

    def lines(name: str, with_fine: bool) -> dict[str, list[tuple[float, float]]]:
        found: dict[str, list[tuple[float, float]]] = {}
        for row in results["solvers"]:
            if with_fine or row["steps"] < fine:
                found.setdefault(row["solver"], []).append((row["steps"], row[name]))
        return found

    level = {"linear interpolation": plain}
    panels = [
        Panel(
            f"RMSE to own solution in {fine} steps, HU",
            "network calls",
            lines("own_rmse_hu", with_fine=False),
            {},
            log_y=True,
        ),
        *(
            Panel(
                title,
                "network calls",
                lines(name, with_fine=True),
                {where: row[name] for where, row in level.items()},
            )
            for title, name in (
                ("RMSE to the phantom, HU", "rmse_hu"),
                ("Sharpness: gradient energy over the phantom's", "sharpness"),
            )
        ),
    ]
    save_line_charts(path, panels)
