"""Geometry of the chest cavity, lungs and lobes; the functions take NumPy or JAX arrays.

All read a patient (see `anatomy.sample_patient`) and points with x, y, z in mm in the patient's
frame that broadcast together. Distances are in mm, negative inside.
"""

from typing import Any, NamedTuple

from data_pipelines.phantom.shapes import superellipse

LOBES = ("right upper", "right middle", "right lower", "left upper", "left lower")


class Profiles(NamedTuple):
    """Shape parameters that depend on z only, broadcastable against the points."""

    body_half_width: Any
    body_half_depth: Any
    body_y: Any
    cage_half_width: Any
    cage_half_depth: Any
    cage_y: Any
    septum: Any
    septum_bulge: Any
    spine_y: Any
    sternum_half_width: Any


def profiles_at(patient, z) -> Profiles:
    """Interpolates the patient's profiles at heights z."""
    xp = z.__array_namespace__()
    return Profiles(*(xp.interp(z, patient["levels_mm"], patient[f]) for f in Profiles._fields))


def cage_distance(points, levels: Profiles, forward=0.0):
    """Distance to the inside of the ribs, optionally moved `forward` (to the front)."""
    y = points.y - levels.cage_y + forward
    return superellipse(points.x, y, levels.cage_half_width, levels.cage_half_depth, 1.3)


def diaphragm_height(patient, points):
    """Height of the diaphragm above the isocentre, mm."""
    xp = points.x.__array_namespace__()
    top = xp.where(points.x > 0, patient["dome_top"][1], patient["dome_top"][0])
    across = (xp.abs(points.x) - 62) / 82
    along = (points.y + 12) / 98
    return top - 55 * (across * across + along * along)


def lung_distance(patient, points, levels: Profiles, forward=0.0):
    """Distance to the nearer lung, ignoring the heart.

    The bounds are the ribs, the septum between the lungs (wide at the hila, narrow in front),
    the spine with its gutters, the apical domes and the diaphragm.
    """
    xp = points.x.__array_namespace__()
    across = xp.abs(points.x)
    depth = (points.y - levels.cage_y - 2) / 34
    septum = levels.septum + levels.septum_bulge / (1 + depth * depth * depth * depth)
    behind = (points.y - levels.spine_y - 6) * 0.75
    spine = 24 - xp.sqrt(points.x * points.x + behind * behind)
    apex_x, apex_y = across - 48, points.y - levels.cage_y - 2
    apex = points.z - patient["apex"] + (apex_x * apex_x + apex_y * apex_y) / 80
    floor = 0.75 * (diaphragm_height(patient, points) - points.z)
    distance = cage_distance(points, levels, forward)
    for bound in (septum - across, spine, 0.7 * apex, floor):
        distance = xp.maximum(distance, bound)
    return distance


def fissure_distance(patient, points):
    """Distances above the oblique and above the horizontal fissure (right lung only)."""
    xp = points.x.__array_namespace__()
    across = xp.abs(points.x) - 70
    oblique = 0.66 * (points.z - patient["oblique"][0]) - 0.75 * (points.y - patient["oblique"][1])
    oblique = oblique + 0.003 * across * across
    horizontal = points.z - patient["horizontal"] - 0.12 * points.y
    return oblique, horizontal


def lobe_weights(patient, points, weights):
    """The entry of `weights` [5], in the order of `LOBES`, for the lobe of each point."""
    xp = points.x.__array_namespace__()
    oblique, horizontal = fissure_distance(patient, points)
    right = xp.where(oblique < 0, weights[2], xp.where(horizontal > 0, weights[0], weights[1]))
    left = xp.where(oblique < 0, weights[4], weights[3])
    return xp.where(points.x > 0, left, right)
