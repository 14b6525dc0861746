"""Draws a patient as a CT volume in HU: a pure array function for `jax.jit` and `jax.vmap`.

Tissues are painted over each other from the skin inwards; each has a cover in [0, 1] per voxel
(see `shapes`), so edges are anti-aliased and coarse and fine grids show the same anatomy.
"""

import functools

import jax
import jax.numpy as jnp

from data_pipelines.phantom import body, thorax
from data_pipelines.phantom.findings import FINDINGS
from data_pipelines.phantom.frame import patient_points, to_scanner
from data_pipelines.phantom.lungs import profiles_at
from data_pipelines.phantom.shapes import Window, blend, cover_capsules
from data_pipelines.phantom.texture import evaluate_waves
from gct_jax.random_keys import random_key
from gct_jax.volumes.grid import Grid

# A voxel belongs to a finding from this cover on; thin structures never fill a voxel.
MASK_COVER, SOLID_MASK_COVER = 0.1, 0.4
SOLID = (
    "Cardiomegaly",
    "Pericardial effusion",
    "Hiatal hernia",
    "Atelectasis",
    "Lung opacity",
    "Pleural effusion",
    "Consolidation",
)
WALL_HU, SOFT_HU, FIBROSIS_HU, BULLA_HU, TUBE_HU = 20.0, 45.0, 10.0, -985.0, 350.0
# Half the window in which a capsule of each group is drawn.
REACH_MM = {
    "bone": 22.0,
    "vessel": 27.0,
    "lesion": 26.0,
    "great": 31.0,
    "aorta": 34.0,
    "gullet": 22.0,
    "airway": 26.0,
    "calcium": 13.0,
    "device": 18.0,
}
CALCIUM_HU, METAL_HU, HIGHEST_HU = 950.0, 3000.0, 3000.0


@functools.partial(jax.jit, static_argnames="grid")
def render(anatomy, grid: Grid) -> jax.Array:
    """CT volume [depth, height, width] in HU, float32, of `Case.anatomy` on a grid."""
    return _paint(anatomy, grid)[0]


@functools.partial(jax.jit, static_argnames="grid")
def render_findings(anatomy, grid: Grid) -> jax.Array:
    """Where each finding lies: masks [18, depth, height, width] bool in the order of `FINDINGS`."""
    return _masks(_paint(anatomy, grid)[1])


@functools.partial(jax.jit, static_argnames="grid")
def render_with_findings(anatomy, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """The volume of `render` and the masks of `render_findings` in one go."""
    volume_hu, covers = _paint(anatomy, grid)
    return volume_hu, _masks(covers)


def _masks(covers: dict[str, jax.Array]) -> jax.Array:
    least = {name: SOLID_MASK_COVER if name in SOLID else MASK_COVER for name in FINDINGS}
    return jnp.stack([covers[name] > least[name] for name in FINDINGS])


def _paint(anatomy, grid: Grid) -> tuple[jax.Array, dict[str, jax.Array]]:
    points = patient_points(anatomy, grid)
    levels = profiles_at(anatomy, points.z[:, :1, :1])
    fields = evaluate_waves(anatomy["waves"], grid.axes_mm())

    def capsules(name: str) -> jax.Array:
        radii = anatomy[f"{name}_radii"]
        ends = to_scanner(anatomy, anatomy[f"{name}_ends"])
        return cover_capsules(grid, ends, radii.reshape(len(radii), -1), REACH_MM[name])

    hu = body.paint_wall(anatomy, points, levels, fields)
    hu = body.paint_abdomen(hu, anatomy, points, levels, fields)
    window = Window.of(grid, thorax.PATCH_REACH_MM)
    hu, air, covers = thorax.paint_lungs(hu, anatomy, points, levels, fields, window)
    hu = body.paint_bones(hu, anatomy, points, levels, capsules)

    (vessel,) = capsules("vessel")
    hu = blend(hu, anatomy["blood_hu"], vessel * jnp.maximum(air, 1 - covers["Pleural effusion"]))
    nodule, node, fibrosis, bulla = capsules("lesion")
    hu = blend(hu, BULLA_HU, bulla * air)
    hu = blend(hu, FIBROSIS_HU, fibrosis * air)
    hu = blend(hu, SOFT_HU, nodule)
    hu, heart_covers = thorax.paint_heart(hu, anatomy, points, fields)
    hu, hernia_covers = thorax.paint_hernia(hu, anatomy, points)
    (gullet,) = capsules("gullet")
    hu = blend(hu, anatomy["muscle_hu"], gullet)
    for name in ("great", "aorta"):
        hu = blend(hu, anatomy["blood_hu"], capsules(name)[0])
    hu = blend(hu, SOFT_HU, node)
    lumen, wall, thick_wall, wide_lumen = capsules("airway")
    hu = blend(hu, WALL_HU, wall)
    hu = blend(hu, body.AIR_HU, lumen)
    aortic, coronary = capsules("calcium")
    hu = blend(hu, CALCIUM_HU, jnp.maximum(aortic, coronary))
    metal, plastic, bore = capsules("device")
    hu = blend(hu, TUBE_HU, plastic)
    hu = blend(hu, body.AIR_HU, bore)
    hu = blend(hu, METAL_HU, metal)

    noise = jax.random.normal(random_key(anatomy["noise_seed"]), grid.shape)
    hu = hu + anatomy["noise_hu"] / (1 + grid.spacing_mm[2] / 3) * noise
    covers |= heart_covers | hernia_covers
    covers |= {
        "Medical material": jnp.maximum(metal, plastic),
        "Arterial wall calcification": aortic,
        "Coronary artery wall calcification": coronary,
        "Lymphadenopathy": node,
        "Emphysema": jnp.maximum(covers["Emphysema"], bulla * air),
        "Lung nodule": nodule,
        "Pulmonary fibrotic sequela": fibrosis * air,
        "Peribronchial thickening": thick_wall - lumen,
        "Bronchiectasis": wide_lumen,
    }
    return jnp.clip(hu, body.AIR_HU, HIGHEST_HU), covers
