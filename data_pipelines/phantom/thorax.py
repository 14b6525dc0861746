"""Paints lungs, heart and their findings; see `render`.

Each function returns the volume and the covers of the findings that it draws.
"""

import jax
import jax.numpy as jnp

from data_pipelines.phantom import lungs
from data_pipelines.phantom.anatomy import LOBULE_MM
from data_pipelines.phantom.frame import to_scanner
from data_pipelines.phantom.lungs import Profiles
from data_pipelines.phantom.placement import PATCH_KIND, PATCHES
from data_pipelines.phantom.shapes import (
    Points,
    Window,
    blend,
    cover,
    cover_ellipsoid,
    cover_sheet,
    ellipsoid,
)

EFFUSION_HU, PERICARDIAL_HU, PERICARDIUM_HU = 10.0, 8.0, 25.0
EMPHYSEMA_HU, SEPTUM_HU, FISSURE_HU, GAS_HU = -970.0, -150.0, -560.0, -950.0
PATCH_HU = {"Consolidation": 40.0, "Lung opacity": -480.0, "Atelectasis": 62.0}
PATCH_REACH_MM = 76.0
SEPTA_MM = 1.5


def paint_lungs(hu, anatomy, points: Points, levels: Profiles, fields, window: Window):
    """Lungs with everything that changes their density, and pleural fluid.

    Returns:
      The volume, the share of aerated lung, and covers by finding.
    """
    x, y, z, _ = points
    side = (x > 0).astype(jnp.int32)
    depth, top = anatomy["effusion_mm"][side], anatomy["effusion_top"][side]
    depth = depth * jnp.clip((top - z) / 60, 0, 1)
    extent = points.extent(0.3)
    cavity = cover(lungs.lung_distance(anatomy, points, levels), extent)
    distance = lungs.lung_distance(anatomy, points, levels, forward=depth)
    air = cover(distance, extent) * cavity
    fluid = cavity * (1 - air)
    hu = blend(hu, EFFUSION_HU, cavity)

    in_lobe = {
        name: lungs.lobe_weights(anatomy, points, anatomy[name]) for name in ("emphysema", "septal")
    }
    lung_hu = anatomy["lung_hu"] + anatomy["gravity_hu"] * y / 100 + 9 * fields["fine"]
    # Regions of several centimetres with lobular borders
    patchy = jnp.tanh(2.4 * fields["coarse"] + 2.0 * fields["patch"] + fields["cell"])
    lung_hu = lung_hu + anatomy["mosaic"] * (30 + 105 * patchy)
    holes = in_lobe["emphysema"] * jnp.clip(0.55 + 0.6 * fields["cell"], 0, 1)
    lung_hu = blend(lung_hu, EMPHYSEMA_HU, holes)
    septa = _cover_septa(anatomy, points, fields, distance, in_lobe["septal"])
    lung_hu = blend(lung_hu + 40 * in_lobe["septal"], SEPTUM_HU, septa)
    oblique, horizontal = lungs.fissure_distance(anatomy, points)
    horizontal = jnp.where((x < 0) & (oblique > 0), jnp.abs(horizontal), jnp.inf)
    fissure = cover_sheet(jnp.minimum(jnp.abs(oblique), horizontal), 0.4, points.extent(0.7))
    lung_hu = blend(lung_hu, FISSURE_HU, fissure)
    hu = blend(hu, lung_hu, air)

    patches = cover_patches(anatomy, points, fields["patch"] + 0.5 * fields["cell"], window)
    covers = {
        "Pleural effusion": fluid * (depth > 0),
        "Mosaic attenuation pattern": air * anatomy["mosaic"] * jnp.abs(patchy),
        "Emphysema": air * holes,
        "Interlobular septal thickening": air * septa,
    }
    for name, share in zip(PATCHES, patches, strict=True):
        covers[name] = share * (air if name == "Lung opacity" else cavity)
        hu = blend(hu, PATCH_HU[name] + 8 * fields["fine"], covers[name])
    return hu, air, covers


def _cover_septa(anatomy, points: Points, fields, distance, severity) -> jax.Array:
    """Walls of the secondary lobules, mostly under the pleura: families of bent, broken sheets."""
    thickness = SEPTA_MM * severity
    septa = jnp.zeros(points.x.shape)
    present = fields["cell"], -fields["cell"], fields["patch"]
    for row, bend, shown in zip(anatomy["septa"], (0.4, 0.0, -0.4), present, strict=True):
        phase = row[0] * points.x + row[1] * points.y + row[2] * points.z
        phase = phase + bend * fields["coarse"] + 0.1 * fields["patch"]
        off_mm = LOBULE_MM * jnp.abs(phase - jnp.round(phase))
        sheet = cover_sheet(off_mm, 0.5 * thickness, points.pixel)
        septa = jnp.maximum(septa, sheet * jnp.clip(0.8 + 1.6 * shown, 0, 1))
    return septa * jnp.clip(1.25 + distance / 35, 0.15, 1) * (severity > 0)


def cover_patches(anatomy, points: Points, ragged, window: Window) -> jax.Array:
    """Cover of the patches of each kind, [kinds, depth, height, width].

    Patches are ellipsoids with edges moved by the field `ragged`, cut off at the lobe's fissures.
    """
    lobe = lungs.lobe_weights(anatomy, points, jnp.arange(5.0))
    volumes = jnp.stack([points.x, points.y, points.z, ragged, lobe])
    centres = anatomy["patches"][:, :3]
    middles = to_scanner(anatomy, jnp.concatenate([centres, centres], 1))[:, :3]

    def add(covers, patch):
        shape, own_lobe, kind, start = patch
        x, y, z, ragged, lobe = window.take(volumes, start)
        here = Points(x, y, z, points.pixel)
        distance, normal_z = ellipsoid(here, shape)
        distance = distance + 0.09 * jnp.minimum(shape[3], 4 * shape[5]) * ragged
        share = cover(distance, here.extent(normal_z) + 2) * (lobe == own_lobe)
        old = window.take(covers, start)
        one_hot = (jnp.arange(len(PATCHES)) == kind)[:, None, None, None]
        return window.put(covers, jnp.maximum(old, one_hot * share), start), None

    empty = jnp.zeros((len(PATCHES), *points.x.shape), jnp.float32)
    slots = anatomy["patches"], anatomy["patch_lobe"], PATCH_KIND, window.starts(middles)
    return jax.lax.scan(add, empty, slots)[0]


def paint_heart(hu, anatomy, points: Points, fields):
    """Heart in its fat and pericardium, with pericardial effusion."""
    ventricles, slope = ellipsoid(points, anatomy["heart"][0])
    atria, atria_slope = ellipsoid(points, anatomy["heart"][1])
    heart = jnp.minimum(ventricles, atria)
    extent = points.extent(jnp.where(ventricles < atria, slope, atria_slope))
    dome = lungs.diaphragm_height(anatomy, points) - points.z
    above = cover(0.75 * (dome - 8), points.extent(0.75))
    # Fluid gathers behind and below.
    sac = anatomy["pericardial_mm"] * jnp.clip(0.85 + points.y / 160 - points.z / 300, 0.6, 1.3)
    coat = 3 + fields["patch"]
    hu = blend(hu, anatomy["fat_hu"], cover(heart - sac - coat - 3, extent) * above)
    pericardium = cover(heart - sac - coat - 1, extent) * above
    hu = blend(hu, PERICARDIUM_HU, pericardium * (anatomy["pericardial_mm"] > 0))
    fluid = cover(heart - sac - coat, extent) * above * (anatomy["pericardial_mm"] > 0)
    hu = blend(hu, PERICARDIAL_HU, fluid)
    inner = cover(heart - coat, extent) * above
    hu = blend(hu, anatomy["fat_hu"], inner)
    muscle = cover(heart, extent) * above
    hu = blend(hu, anatomy["heart_muscle_hu"], muscle)
    blood = jnp.maximum(
        cover_ellipsoid(points, anatomy["chambers"][0]),
        cover_ellipsoid(points, anatomy["chambers"][1]),
    )
    blood = jnp.maximum(blood, cover(atria + 3, extent))
    hu = blend(hu, anatomy["blood_hu"], blood * muscle)
    groove = cover(jnp.abs(ventricles - atria) - 3, points.pixel) * cover(-heart - 9, extent)
    hu = blend(hu, anatomy["fat_hu"], groove * muscle)
    covers = {
        "Cardiomegaly": muscle * anatomy["cardiomegaly"],
        "Pericardial effusion": fluid * (1 - inner),
    }
    return hu, covers


def paint_hernia(hu, anatomy, points: Points):
    """Stomach above the diaphragm: fat, wall, fluid and, in front of it, gas."""
    shape = anatomy["hernia"]
    hu = blend(hu, anatomy["fat_hu"], cover_ellipsoid(points, shape, 4.0))
    whole = cover_ellipsoid(points, shape)
    hu = blend(hu, anatomy["muscle_hu"], whole)
    gas = cover(points.y - shape[1] + 0.15 * shape[4], points.pixel)
    hu = blend(hu, 18.0 + (GAS_HU - 18.0) * gas, cover_ellipsoid(points, shape, -4.5))
    return hu, {"Hiatal hernia": whole}
