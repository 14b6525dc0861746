"""Paints the chest wall, the upper abdomen and the bones; see `render`."""

import jax
import jax.numpy as jnp

from data_pipelines.phantom.lungs import Profiles, cage_distance, diaphragm_height
from data_pipelines.phantom.shapes import (
    Points,
    blend,
    cover,
    cover_ellipsoid,
    ellipsoid,
    superellipse,
)
from data_pipelines.phantom.skeleton import SPACING_MM, TOP_MM

AIR_HU, TABLE_HU, SKIN_HU, GLAND_HU = -1000.0, -250.0, 30.0, 25.0
CORTEX_HU, THIN_BONE_HU, CARTILAGE_HU, DISC_HU = 850.0, 600.0, 110.0, 95.0
CORD_HU = 38.0
AXILLA = (128.0, 2.0, 86.0, 20.0, 30.0, 46.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
HUMERUS = (150.0, 16.0, 148.0, 20.0, 21.0, 24.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def paint_wall(anatomy, points: Points, levels: Profiles, fields) -> jax.Array:
    """Air, table, skin, fat, breasts and muscle: [depth, height, width] in HU."""
    x, y, z, pixel = points
    across = jnp.abs(x)
    muscle = superellipse(x, y - levels.body_y, levels.body_half_width, levels.body_half_depth, 1.3)
    fat = anatomy["fat"] * (0.75 + 0.25 * jnp.clip((-z - 20) / 100, -1, 1))
    chest_front = levels.body_y - levels.body_half_depth
    present = anatomy["breast"] > 0
    half = jnp.where(present, anatomy["breast"], 1e-3) * jnp.array([58.0, 34.0, 58.0])
    breast, _ = ellipsoid(
        Points(across - 78, y - chest_front + 0.3 * fat, z + 22, pixel),
        jnp.concatenate([jnp.zeros(3), half, jnp.eye(3).ravel()]),
    )
    skin = jnp.minimum(muscle - fat, breast)
    table = jnp.abs(jnp.hypot(x, y + 330) - 330 - anatomy["table_y"]) - 2.5
    hu = blend(jnp.full(x.shape, AIR_HU), TABLE_HU, cover(table, pixel))
    hu = blend(hu, SKIN_HU, cover(skin, pixel))
    hu = blend(hu, anatomy["fat_hu"] + 5 * fields["fine"], cover(skin + 2.2, pixel))
    lobules = jnp.clip(fields["cell"] + anatomy["gland"] - 0.6, 0, 1)
    hu = blend(hu, GLAND_HU, cover(breast + 9, pixel) * lobules * present)
    cage = cage_distance(points, levels)
    layers = jnp.sin(jnp.maximum(cage, 0) / 2.6 + fields["coarse"]) + 0.5 * fields["patch"]
    fat_planes = jnp.clip(1.5 * (layers - 0.75), 0, 1) * (cage > 9) * (across > 30)
    muscle_hu = anatomy["muscle_hu"] + 3 * fields["fine"]
    hu = blend(hu, muscle_hu, cover(muscle, pixel) * (1 - fat_planes))
    mirrored = points._replace(x=across)
    return blend(hu, anatomy["fat_hu"], cover_ellipsoid(mirrored, jnp.array(AXILLA)))


def paint_abdomen(hu, anatomy, points: Points, levels: Profiles, fields) -> jax.Array:
    """Fat inside the ribs; below the diaphragm liver, spleen and stomach with gas."""
    x, y, z, pixel = points
    cage = cage_distance(points, levels)
    inside = cover(cage + 2, pixel)
    fat_hu = anatomy["fat_hu"] + 6 * fields["fine"]
    hu = blend(hu, fat_hu, inside)
    depth = 0.75 * (diaphragm_height(anatomy, points) - z)  # below the dome: positive
    slant = points.extent(0.75)
    hu = blend(hu, anatomy["muscle_hu"], cover(-depth, slant) * inside)
    deep = cover(4 - depth, slant) * cover(cage + 4, pixel)
    hu = blend(hu, fat_hu, deep)
    hu = blend(hu, anatomy["spleen_hu"], deep * cover_ellipsoid(points, anatomy["spleen"]))
    hu = blend(hu, anatomy["muscle_hu"], deep * cover_ellipsoid(points, anatomy["stomach"]))
    gas = cover(y - anatomy["stomach_gas"], pixel)  # the patient lies on the back
    content = 20.0 - 970.0 * gas
    hu = blend(hu, content, deep * cover_ellipsoid(points, anatomy["stomach"], -4.0))
    edge = x - anatomy["liver_edge"] + 0.5 * y + 8 * fields["coarse"]
    liver = deep * cover(edge, pixel) * cover(y - 60 - 0.3 * jnp.abs(x), pixel)
    return blend(hu, anatomy["liver_hu"] + 4 * fields["fine"], liver)


def paint_bones(hu, anatomy, points: Points, levels: Profiles, capsules) -> jax.Array:
    """Spine, sternum, shoulder blades, humeral heads; ribs and others from `capsules`.

    Args:
      hu: the volume so far.
      anatomy: the patient.
      points: voxel centres.
      levels: profiles at the voxels' heights.
      capsules: covers of the capsules of a name.
    """
    x, y, z, pixel = points
    hu = _paint_spine(hu, anatomy, points, levels)
    front = y - levels.cage_y + levels.cage_half_depth + 4
    half_width = levels.sternum_half_width
    sternum = superellipse(x, front, jnp.maximum(half_width, 1.0), 5.5, 0.8)
    hu = blend(hu, CORTEX_HU, cover(sternum, pixel) * (half_width > 3))
    hu = blend(hu, anatomy["marrow_hu"], cover(sternum + 1.8, pixel) * (half_width > 3))

    reach = jnp.clip((z + 12) / 90, 0.15, 1)
    blade = _plate(jnp.abs(x) - 72, y - levels.spine_y - 41, 54 * reach, -45 * reach)
    blade = cover(blade - 2.6, pixel) * cover(jnp.abs(z - 46) - 62, points.extent(1.0))
    hu = blend(hu, THIN_BONE_HU, blade)
    mirrored = points._replace(x=jnp.abs(x))
    hu = blend(hu, CORTEX_HU, cover_ellipsoid(mirrored, jnp.array(HUMERUS)))
    hu = blend(hu, anatomy["marrow_hu"], cover_ellipsoid(mirrored, jnp.array(HUMERUS), -2.0))

    cartilage, bone, marrow = capsules("bone")
    hu = blend(hu, CARTILAGE_HU, cartilage)
    hu = blend(hu, CORTEX_HU, bone)
    return blend(hu, anatomy["marrow_hu"] + 60, marrow)


def _plate(x, y, end_x, end_y):
    """Distance in the image plane to the segment from the origin to an end."""
    t = jnp.clip((x * end_x + y * end_y) / (end_x * end_x + end_y * end_y), 0, 1)
    return jnp.hypot(x - t * end_x, y - t * end_y)


def _paint_spine(hu, anatomy, points: Points, levels: Profiles) -> jax.Array:
    x, y, z, pixel = points
    behind = y - levels.spine_y
    muscle = superellipse(x, behind - 10, 24.0, 30.0, 1.6)
    hu = blend(hu, anatomy["muscle_hu"], cover(muscle, pixel) * (behind > 6))
    z = z[:, :1, :1]
    phase = jnp.abs(jnp.mod(z - TOP_MM + SPACING_MM / 2, SPACING_MM) - SPACING_MM / 2)
    disc = cover(8.8 - phase, points.extent(1.0))  # phase: 0 in mid-vertebra
    waist = 1.5 * jnp.cos(phase * (jnp.pi / 8.8))
    body = superellipse(x, behind, 17.5 - waist, 14.5 - waist, 1.4)
    whole = cover(body, pixel)
    hu = blend(hu, blend(THIN_BONE_HU, DISC_HU, disc), whole)
    hu = blend(hu, blend(anatomy["marrow_hu"], DISC_HU, disc), cover(body + 1.6, pixel))
    canal = jnp.hypot(x, behind - 23)
    hu = blend(hu, THIN_BONE_HU, cover(canal - 13, pixel) * (1 - whole) * (1 - 0.6 * disc))
    hu = blend(hu, 0.0, cover(canal - 9, pixel))
    return blend(hu, CORD_HU, cover(canal - 4.5, pixel))
