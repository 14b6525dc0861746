"""Draws a patient as a CT volume in HU: a pure array function for `jax.jit` and `jax.vmap`.

Tissues are painted over each other from the skin inwards; each has a cover in [0, 1] per voxel
(see `shapes`), so edges are anti-aliased and coarse and fine grids show the same anatomy.
"""

import functools

import jax
import jax.numpy as jnp

from data_pipelines.phantom import lungs
from data_pipelines.phantom.findings import FINDINGS
from data_pipelines.phantom.grid import Grid
from data_pipelines.phantom.shapes import (
    Points,
    blend,
    cover,
    cover_capsules,
    cover_ellipsoid,
    ellipsoid,
    superellipse,
)
from data_pipelines.phantom.texture import evaluate_waves

AIR_HU, TABLE_HU, SKIN_HU = -1000.0, -250.0, 30.0
CORTEX_HU, CARTILAGE_HU, DISC_HU = 850.0, 110.0, 95.0


@functools.partial(jax.jit, static_argnames="grid")
def render(anatomy, grid: Grid) -> jax.Array:
    """CT volume [depth, height, width] in HU, float32, of `Case.anatomy` on a grid."""
    return _paint(anatomy, grid)[0]


@functools.partial(jax.jit, static_argnames="grid")
def render_findings(anatomy, grid: Grid) -> jax.Array:
    """Where each finding lies: masks [18, depth, height, width] bool in the order of `FINDINGS`."""
    covers = _paint(anatomy, grid)[1]
    empty = jnp.zeros(grid.shape)
    return jnp.stack([covers.get(name, empty) for name in FINDINGS]) > 0.1


def patient_points(anatomy, grid: Grid) -> Points:
    """Voxel centres in the patient's frame: shifted, turned about z and gently bent."""
    z, y, x = (jnp.asarray(axis) for axis in grid.axes_mm())
    shift, angle = anatomy["shift"], anatomy["rotation"]
    z, y, x = z[:, None, None] - shift[2], y[:, None] - shift[1], x - shift[0]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    bend = anatomy["warp_waves"]  # [2 outputs, 3 waves, amplitude and angle per axis]

    def bent(value, waves):
        for wave in waves:
            value = value + 0.9 * wave[0] * (
                jnp.sin(z / 45 + 3 * wave[1])
                * jnp.sin(y / 60 + 3 * wave[2])
                * jnp.sin(x / 60 + 3 * wave[3])
            )
        return value

    turned_x, turned_y = cos * x + sin * y, cos * y - sin * x
    shape = (grid.depth, grid.height, grid.width)
    return Points(
        jnp.broadcast_to(bent(turned_x, bend[0]), shape),
        jnp.broadcast_to(bent(turned_y, bend[1]), shape),
        jnp.broadcast_to(z, shape),
        grid.pixel_spacing_mm,
    )


def _paint(anatomy, grid: Grid):
    points = patient_points(anatomy, grid)
    x, y, z = points[:3]
    across = jnp.abs(x)
    levels = lungs.profiles_at(anatomy, z[:, :1, :1])
    pixel = points.pixel
    axes = grid.axes_mm()
    fields = {
        name: evaluate_waves(anatomy[f"{name}_waves"], axes)
        for name in ("coarse", "patch", "cell", "fine")
    }
    tiles = 4 if grid.width <= 64 else 8
    capsules = functools.partial(cover_capsules, points, tiles=tiles)

    # Body wall
    muscle_line = superellipse(
        x, y - levels.body_y, levels.body_half_width, levels.body_half_depth, 1.3
    )
    fat = anatomy["fat"] * (0.75 + 0.25 * jnp.clip((-z - 20) / 100, -1, 1))
    skin = muscle_line - fat
    breast, _ = ellipsoid(
        Points(across - 78, y - levels.body_y + levels.body_half_depth + 0.3 * fat, z + 22, pixel),
        jnp.concatenate(
            [jnp.zeros(3), 1e-3 + anatomy["breast"] * jnp.array([58.0, 34, 58]), jnp.eye(3).ravel()]
        ),
    )
    skin = jnp.minimum(skin, breast)
    table = jnp.abs(jnp.hypot(x, y + 330) - 330 - 128 - anatomy["fat"]) - 2.5
    hu = blend(jnp.full(grid.shape, AIR_HU), TABLE_HU, cover(table, pixel) * (across < 200))
    hu = blend(hu, SKIN_HU, cover(skin, pixel))
    hu = blend(hu, anatomy["fat_hu"] + 5 * fields["fine"], cover(skin + 2.2, pixel))
    gland = cover(breast + 9, pixel) * jnp.clip(fields["cell"] + anatomy["gland"] - 0.6, 0, 1)
    hu = blend(hu, 25.0, gland * (anatomy["breast"] > 0))
    cage = lungs.cage_distance(points, levels)
    layers = jnp.sin(jnp.maximum(cage, 0) / 2.6 + fields["coarse"]) + 0.5 * fields["patch"]
    fat_planes = jnp.clip(1.5 * (layers - 0.75), 0, 1) * (cage > 9) * (across > 30)
    muscle = cover(muscle_line, pixel)
    muscle_hu = anatomy["muscle_hu"] + 3 * fields["fine"]
    hu = blend(hu, muscle_hu, muscle * (1 - fat_planes))
    axilla = cover_ellipsoid(
        Points(across, y, z, pixel),
        jnp.array([128.0, 2, 86, 20, 30, 46, 1, 0, 0, 0, 1, 0, 0, 0, 1]),
    )
    hu = blend(hu, anatomy["fat_hu"], axilla)

    # Inside the ribs: fat, abdomen, lungs
    inside = cover(cage + 2, pixel)
    hu = blend(hu, anatomy["fat_hu"] + 6 * fields["fine"], inside)
    dome = 0.75 * (lungs.diaphragm_height(anatomy, points) - z)  # above the dome: negative
    slant = points.extent(0.75)
    below = cover(-dome, slant) * inside
    hu = blend(hu, muscle_hu, below * cover(dome - 4, slant))
    deep = cover(5 - dome, slant) * cover(cage + 4, pixel)
    liver_edge = x - anatomy["liver_edge"] + 0.5 * y + 8 * fields["coarse"]
    liver = deep * cover(liver_edge, pixel) * cover(y - 60 - 0.3 * across, pixel)
    hu = blend(hu, anatomy["spleen_hu"], deep * cover_ellipsoid(points, anatomy["spleen"]))
    stomach = anatomy["stomach"]
    hu = blend(hu, 45.0, deep * cover_ellipsoid(points, stomach))
    gas = cover(y - anatomy["stomach_gas"], pixel)
    content = blend(jnp.full(grid.shape, 20.0), -950.0, gas)
    hu = blend(hu, content, deep * cover_ellipsoid(points, stomach, -4.0))
    hu = blend(hu, anatomy["liver_hu"] + 4 * fields["fine"], liver)
    lung = cover(lungs.lung_distance(anatomy, points, levels), points.extent(0.3))
    lung_hu = anatomy["lung_hu"] + anatomy["gravity_hu"] * y / 100 + 9 * fields["fine"]
    hu = blend(hu, lung_hu, lung)

    # Spine and sternum
    hu = _spine(hu, anatomy, points, levels)
    sternum_y = y - levels.cage_y + levels.cage_half_depth + 4
    half_width = levels.sternum_half_width
    sternum = superellipse(x, sternum_y, jnp.maximum(half_width, 1.0), 5.5, 0.8)
    present = half_width > 3
    hu = blend(hu, CORTEX_HU, cover(sternum, pixel) * present)
    hu = blend(hu, anatomy["marrow_hu"], cover(sternum + 1.8, pixel) * present)

    # Ribs, cartilage, shoulder blades
    reach = jnp.clip((z + 12) / 90, 0.15, 1)
    blade = _plate(across - 72, y - levels.spine_y - 41, 54 * reach, -45 * reach)
    blade = cover(blade - 2.6, pixel) * cover(jnp.abs(z - 46) - 62, points.extent(1.0))
    hu = blend(hu, 0.75 * CORTEX_HU, blade)
    cartilage, bone, marrow = capsules(
        ends=anatomy["bone_ends"], radii=anatomy["bone_radii"], keep=14
    )
    hu = blend(hu, CARTILAGE_HU, cartilage)
    hu = blend(hu, CORTEX_HU, bone)
    hu = blend(hu, anatomy["marrow_hu"] + 60, marrow)

    # Lung vessels and airways
    (vessel,) = capsules(
        ends=anatomy["vessel_ends"], radii=anatomy["vessel_radii"][:, None], keep=20
    )
    hu = blend(hu, anatomy["blood_hu"], vessel)
    hu = _heart(hu, anatomy, points, fields)
    aorta, great = capsules(
        ends=jnp.concatenate([anatomy["aorta_ends"], anatomy["great_ends"]]),
        radii=_block(anatomy["aorta_radii"], anatomy["great_radii"]),
        keep=12,
    )
    hu = blend(hu, anatomy["blood_hu"], great)
    hu = blend(hu, anatomy["blood_hu"], aorta)
    lumen, wall = capsules(ends=anatomy["airway_ends"], radii=anatomy["airway_radii"], keep=12)
    hu = blend(hu, 20.0, wall)
    hu = blend(hu, -990.0, lumen)

    noise = jax.random.normal(jax.random.key(anatomy["noise_seed"]), grid.shape)
    hu = hu + anatomy["noise_hu"] * noise * (0.5 if grid.pixel_spacing_mm > 3 else 1.0)
    return jnp.clip(hu, -1000.0, 3000.0), {}


def _block(*radii):
    """Radii of several groups as columns, zero outside a group's own rows: [sum n, groups]."""
    return jax.scipy.linalg.block_diag(*(group[:, None] for group in radii))


def _plate(x, y, end_x, end_y):
    """Distance in the image plane to the segment from the origin to an end."""
    t = jnp.clip((x * end_x + y * end_y) / (end_x * end_x + end_y * end_y), 0, 1)
    return jnp.hypot(x - t * end_x, y - t * end_y)


def _spine(hu, anatomy, points, levels):
    x, y, z = points[:3]
    pixel = points.pixel
    behind = y - levels.spine_y
    tissue = superellipse(x, behind - 10, 24.0, 30.0, 1.6)
    hu = blend(hu, anatomy["muscle_hu"], cover(tissue, pixel) * (behind > 6))
    phase = jnp.abs(jnp.mod(z - 144 + 11.25, 22.5) - 11.25)  # 0 in mid-vertebra, 11.25 mid-disc
    disc = cover(8.8 - phase, points.extent(1.0))
    waist = 1.5 * jnp.cos(phase * (jnp.pi / 8.8))
    body = superellipse(x, behind, 17.5 - waist, 14.5 - waist, 1.4)
    cortex = blend(jnp.full_like(hu, 600.0), DISC_HU, disc)
    marrow = blend(anatomy["marrow_hu"] + jnp.zeros_like(hu), DISC_HU, disc)
    hu = blend(hu, cortex, cover(body, pixel))
    hu = blend(hu, marrow, cover(body + 1.6, pixel))
    canal = jnp.hypot(x, behind - 23)
    arch = cover(canal - 13, pixel) * (1 - cover(superellipse(x, behind, 17.5, 14.5, 1.4), pixel))
    hu = blend(hu, 600.0, arch * (1 - 0.6 * disc))
    hu = blend(hu, 0.0, cover(canal - 9, pixel))
    return blend(hu, 38.0, cover(canal - 4.5, pixel))


def _heart(hu, anatomy, points, fields):
    ventricles, n1 = ellipsoid(points, anatomy["heart"][0])
    atria, n2 = ellipsoid(points, anatomy["heart"][1])
    heart = jnp.minimum(ventricles, atria)
    extent = points.extent(jnp.where(ventricles < atria, n1, n2))
    above = cover(
        0.75 * (lungs.diaphragm_height(anatomy, points) - 8 - points.z), points.extent(0.75)
    )
    hu = blend(hu, anatomy["fat_hu"], cover(heart - 4 - fields["patch"], extent) * above)
    muscle = cover(heart, extent) * above
    hu = blend(hu, anatomy["heart_muscle_hu"], muscle)
    blood = jnp.maximum(
        cover_ellipsoid(points, anatomy["chambers"][0]),
        cover_ellipsoid(points, anatomy["chambers"][1]),
    )
    blood = jnp.maximum(blood, cover(atria + 3, extent))
    hu = blend(hu, anatomy["blood_hu"], blood * muscle)
    groove = cover(jnp.abs(ventricles - atria) - 3, points.pixel) * cover(-heart - 9, extent)
    return blend(hu, anatomy["fat_hu"], groove * muscle)
