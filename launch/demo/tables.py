"""The demo evaluation's results as Markdown and as a picture."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gct_jax.runtime.files import replace_when_done
from gct_jax.volumes.intensity import WINDOWS_HU, window_to_uint8
from launch.demo.measures import GOOD_AUROC, fidelity
from launch.markdown import markdown_table

SOURCES = {"generated": "generated", "phantom": "phantom", "ctvit": "CT-ViT of phantom"}


def markdown(results: dict) -> str:
    """Everything that was measured, as tables."""
    findings = results["findings"]
    parts = [_header(results), _findings(findings), _sides(results["sides"], findings)]
    if results["steps"]:
        parts.append(_steps(results["steps"]))
    parts += [_quality(results["quality"]), _swaps(results["swaps"])]
    return "\n\n".join([*parts, _diversity(results["diversity"])]) + "\n"


def _header(results: dict) -> str:
    run = results["run"]
    found = fidelity(results["findings"], results["sides"])
    return (
        f"# Evaluation of model '{run['model']}'\n\n"
        f"{run['prompts']} prompts of patients that no stage has seen (case seeds from "
        f"{run['first_seed']}), {run['steps']} steps, guidance {run['guidance']:g}, "
        f"temperature {run['temperature']:g}, model "
        f"{run['sha256'][:12]}; {run['cut_prompts']} prompts were longer than the text encoder "
        "reads. Detectors are weighted sums of HU measurements in regions of the anatomy, fitted "
        "to renderings of other phantoms (`launch.demo.fit_detectors`), to nothing that a network "
        "made.\n\n"
        f"AUROC >= {GOOD_AUROC} for {found['good']} of {len(results['findings'])} findings; side "
        f"correct in {_share(found['side_correct'], found['side_asked'])} of one-sided findings."
    )


def _findings(rows: Sequence[dict]) -> str:
    table = [["finding", "asked", *SOURCES.values()]]
    for row in rows:
        cells = [
            f"{row[s]['value']:.3f} ({row[s]['low']:.2f} to {row[s]['high']:.2f})" for s in SOURCES
        ]
        table.append([row["finding"], str(row["positives"]), *cells])
    return (
        "## AUROC per finding (95 % bootstrap interval)\n\n"
        "The columns to the right are the limits of the detectors and of the tokenizer: the same "
        f"cases as rendered, and as CT-ViT rebuilds them.\n\n{markdown_table(table)}"
    )


def _sides(rows: Sequence[dict], findings: Sequence[dict]) -> str:
    table = [["finding asked on one side", "asked", *SOURCES.values()]]
    good = {row["finding"] for row in findings if row["generated"]["value"] >= GOOD_AUROC}
    sums = {
        f"those generated with AUROC >= {GOOD_AUROC}": [r for r in rows if r["finding"] in good],
        "all": rows,
    }
    totals = [
        {"finding": title, **{key: sum(r[key] for r in part) for key in ("asked", *SOURCES)}}
        for title, part in sums.items()
    ]
    for row in [*rows, *totals]:
        shares = [_share(row[source], row["asked"]) for source in SOURCES]
        table.append([row["finding"], str(row["asked"]), *shares])
    return f"## Side correct\n\n{markdown_table(table)}"


def _steps(rows: Sequence[dict]) -> str:
    table = [["token decoding steps", f"findings >= {GOOD_AUROC}", "mean AUROC", "side correct"]]
    for row in rows:
        side = _share(row["side_correct"], row["side_asked"])
        table.append([str(row["steps"]), str(row["good"]), f"{row['mean_auroc']:.3f}", side])
    return f"## The same prompts in fewer or more steps\n\n{markdown_table(table)}"


def _quality(rows: dict) -> str:
    table = [["against the phantom", "pairs", "PSNR, dB", "SSIM"]]
    for name, row in rows.items():
        table.append(
            [
                name,
                str(row["pairs"]),
                f"{row['psnr']:.2f} ± {row['psnr_sd']:.2f}",
                f"{row['ssim']:.3f} ± {row['ssim_sd']:.3f}",
            ]
        )
    return (
        f"## Reconstruction (range 2000 HU, mean ± standard deviation)\n\n{markdown_table(table)}"
    )


def _swaps(rows: Sequence[dict]) -> str:
    table = [
        ["prompt", "exchanged for", "detector", "score", "followed", "change, HU", "other seed, HU"]
    ]
    for row in rows:
        table.append(
            [
                row["before"],
                row["after"],
                row["measured"],
                f"{row['score_before']:.2f} -> {row['score_after']:.2f}",
                f"{row['followed']} of {row['seeds']}",
                f"{row['change_hu']:.0f}",
                f"{row['other_seed_hu']:.0f}",
            ]
        )
    return (
        "## Another prompt at the same seed\n\n"
        "Mean absolute change of the volume, beside that of the same prompt at another seed.\n\n"
        + markdown_table(table)
    )


def _diversity(rows: Sequence[dict]) -> str:
    table = [["prompt", "seeds", "generated, HU", "phantom, HU", "generated SSIM", "phantom SSIM"]]
    for row in rows:
        made, real = row["generated"], row["phantom"]
        table.append(
            [
                row["prompt"],
                str(row["seeds"]),
                f"{made['change_hu']:.0f}",
                f"{real['change_hu']:.0f}",
                f"{made['ssim']:.3f}",
                f"{real['ssim']:.3f}",
            ]
        )
    return (
        "## Diversity over seeds\n\n"
        "Mean absolute difference and SSIM between two volumes of the same prompt, and between two "
        f"phantom patients with the same findings.\n\n{markdown_table(table)}"
    )


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.0f} % ({count} of {total})" if total else "-"


def save_montage(path: Path, volumes_hu: np.ndarray, prompts: Sequence[str]) -> None:
    """PNG with a row per volume: its prompt, three axial slices in two windows, a coronal one."""
    tile = 128
    rows = []
    for volume, prompt in zip(volumes_hu, prompts, strict=True):
        depth, height, _ = volume.shape
        axial = [volume[int(depth * share)] for share in (0.3, 0.45, 0.65)]
        images = [
            window_to_uint8(view, WINDOWS_HU[window])
            for window in ("lung", "mediastinal")
            for view in [*axial, volume[::-1, height // 2]]
        ]
        tiles = [
            Image.fromarray(image).resize((tile, tile), Image.Resampling.BICUBIC)
            for image in images
        ]
        label = Image.new("L", (2 * tile, tile), 255)
        text = "\n".join(textwrap.wrap(prompt, 40)[:8])
        ImageDraw.Draw(label).text((6, 6), text, fill=0)
        rows.append(np.concatenate([np.asarray(part) for part in (label, *tiles)], axis=1))
    with replace_when_done(path) as temporary:
        Image.fromarray(np.concatenate(rows)).save(temporary)
