"""Fibre architecture of the simulated brain: white matter bundles as families of smooth curves in ICBM152 space.

The waypoints below are our own, placed by hand on the ICBM152 white matter map after textbook anatomy (Nieuwenhuys,
2008; Catani and Thiebaut de Schotten, 2008). They are meant to look right and to be known exactly, not to replace an
atlas. Coordinates are RAS mm of the right hemisphere; the left is its mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

GROUPS: Final = {
    "callosal": 0.02,
    "projection": 0.04,
    "longitudinal": 0.16,
    "ventral": 0.09,
    "cingulum": 0.08,
    "arcuate": 0.16,
    "cerebellar": 0.1,
}
"""Dispersion in the core of each group's bundles. Bundles of one group blend; those of different groups cross."""

POINT_SPACING: Final = 1.0
"""Distance of the points that a curve is sampled at, mm."""

Waypoints = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Bundle:
    """A family of curves.

    Parameters
    ----------
    name : str
    group : str
        One of `GROUPS`.
    sections : tuple of waypoint lists, mm
        Lists of the same length, side by side; curves between two lists are interpolated, so that several make a
        sheet. That of a commissure starts at the midline.
    fan : tuple, one vector per waypoint, mm
        How far the curves spread from a section's middle.
    radius : float, mm
        Thickness of the bundle at its waypoints.
    weight : float
        How much it counts where bundles meet.
    commissure : bool
        It crosses the midline.
    """

    name: str
    group: str
    sections: tuple[Waypoints, ...]
    fan: Waypoints
    radius: float = 4.0
    weight: float = 1.0
    commissure: bool = False


_NO_FAN: Final = (0.0, 0.0, 0.0)

BUNDLES: Final = (
    Bundle(
        "corpus callosum",
        "callosal",
        (
            ((0, 22, -1), (8, 30, -4), (16, 42, -8), (19, 56, -10)),
            ((0, 28, 4), (9, 36, 4), (18, 48, 4), (21, 64, 3)),
            ((0, 25, 12), (11, 32, 15), (20, 44, 21), (24, 56, 26)),
            ((0, 16, 19), (13, 20, 24), (22, 28, 36), (25, 34, 50)),
            ((0, 5, 24), (13, 7, 29), (22, 10, 43), (25, 12, 60)),
            ((0, -8, 26), (13, -9, 30), (22, -12, 45), (25, -14, 65)),
            ((0, -20, 24), (14, -22, 29), (23, -28, 43), (26, -34, 64)),
            ((0, -30, 21), (15, -35, 26), (24, -46, 37), (27, -58, 54)),
            ((0, -36, 16), (15, -46, 20), (25, -62, 24), (25, -80, 28)),
            ((0, -38, 10), (15, -49, 11), (25, -68, 8), (20, -92, 6)),
        ),
        (_NO_FAN, (1, 0, 0), (7, 0, -3), (17, 0, -8)),
        radius=2.0,
        weight=1.6,
        commissure=True,
    ),
    Bundle(
        "tapetum",
        "callosal",
        (((0, -37, 14), (14, -42, 21), (29, -45, 18), (37, -42, 2), (46, -34, -14)),),
        (_NO_FAN, _NO_FAN, (0, 2, 0), (0, 6, 0), (2, 14, 0)),
        radius=3.0,
        weight=0.5,
        commissure=True,
    ),
    Bundle(
        "anterior commissure",
        "callosal",
        (((0, 3, -4), (12, 4, -5), (24, 1, -9), (36, -6, -16)),),
        (_NO_FAN, _NO_FAN, _NO_FAN, (4, 4, 2)),
        radius=2.0,
        weight=0.4,
        commissure=True,
    ),
    Bundle(
        "corona radiata",
        "projection",
        (
            ((4, -28, -62), (6, -20, -36), (11, -15, -13), (18, 0, 4), (22, 12, 22), (24, 22, 38), (24, 28, 54)),
            ((4, -29, -62), (6, -21, -36), (13, -17, -13), (20, -6, 6), (24, 0, 23), (26, 6, 42), (26, 8, 62)),
            ((5, -30, -62), (7, -23, -36), (15, -19, -13), (24, -14, 8), (26, -14, 25), (28, -16, 46), (29, -20, 68)),
            ((5, -31, -62), (7, -25, -36), (17, -22, -13), (27, -22, 8), (28, -26, 26), (29, -32, 46), (29, -38, 66)),
        ),
        (_NO_FAN, _NO_FAN, _NO_FAN, _NO_FAN, (2, 0, 0), (9, 0, -3), (20, 0, -10)),
        radius=3.5,
        weight=1.5,
    ),
    Bundle(
        "anterior thalamic radiation",
        "projection",
        (
            ((8, -14, 6), (13, 0, 6), (18, 13, 3), (21, 30, 4), (22, 50, 2)),
            ((9, -12, 10), (14, 1, 10), (19, 14, 11), (23, 30, 17), (25, 48, 22)),
        ),
        (_NO_FAN, _NO_FAN, (0, 0, 2), (3, 0, 3), (8, 0, 4)),
        radius=2.5,
        weight=0.9,
    ),
    Bundle(
        "posterior thalamic radiation",
        "ventral",
        (
            ((22, -23, -4), (33, -22, -9), (39, -38, -7), (32, -64, -4), (13, -92, -2)),
            ((20, -26, 0), (31, -33, 2), (35, -48, 6), (28, -70, 10), (13, -92, 10)),
            ((19, -27, 8), (28, -36, 14), (30, -52, 22), (27, -70, 30), (20, -84, 36)),
        ),
        (_NO_FAN, _NO_FAN, (1, 0, 0), (2, 0, 0), (4, 0, 0)),
        radius=2.5,
    ),
    Bundle(
        "superior longitudinal fasciculus",
        "longitudinal",
        (
            ((26, 44, 18), (30, 26, 30), (33, 4, 34), (34, -24, 34), (34, -46, 36), (32, -66, 42)),
            ((42, 28, 12), (40, 16, 22), (38, 0, 27), (37, -22, 28), (40, -40, 30), (48, -54, 34)),
        ),
        ((5, 0, 5), (2, 0, 2), _NO_FAN, _NO_FAN, (2, 0, 2), (6, 0, 5)),
        radius=4.0,
        weight=1.1,
    ),
    Bundle(
        "superior frontal and parietal longitudinal fibres",
        "longitudinal",
        (((17, 48, 28), (17, 30, 46), (17, 6, 54), (17, -20, 56), (16, -44, 52), (14, -64, 44)),),
        (_NO_FAN, (2, 0, 0), (2, 0, 0), (2, 0, 0), (2, 0, 0), _NO_FAN),
        radius=4.0,
        weight=0.4,
    ),
    Bundle(
        "arcuate fasciculus",
        "arcuate",
        (
            ((46, 16, 14), (41, 4, 24), (36, -16, 28), (36, -34, 26), (40, -46, 14), (46, -42, -2), (52, -24, -14)),
            ((50, 6, 26), (43, -2, 28), (38, -18, 31), (38, -38, 30), (44, -52, 18), (48, -52, 0), (54, -36, -14)),
        ),
        ((2, 0, 4), _NO_FAN, _NO_FAN, _NO_FAN, _NO_FAN, (1, 3, 0), (3, 6, 0)),
        radius=3.5,
        weight=0.9,
    ),
    Bundle(
        "inferior fronto-occipital fasciculus",
        "ventral",
        (
            ((18, -94, -2), (33, -68, 0), (38, -42, -4), (34, -12, -8), (30, 14, -8), (26, 36, -2), (22, 58, -4)),
            ((18, -92, 12), (33, -68, 8), (37, -44, 0), (34, -10, -2), (30, 16, -2), (29, 38, 6), (28, 56, 10)),
        ),
        ((6, 0, 3), (3, 0, 3), (1, 0, 2), _NO_FAN, _NO_FAN, (3, 0, 3), (8, 0, 6)),
        radius=3.0,
        weight=1.1,
    ),
    Bundle(
        "inferior longitudinal fasciculus",
        "ventral",
        (((24, -92, -8), (35, -70, -8), (42, -46, -12), (43, -20, -18), (40, 2, -28), (36, 14, -34)),),
        ((8, 0, 6), (4, 0, 4), (3, 0, 3), (3, 0, 3), (4, 0, 4), (5, 0, 3)),
        radius=5.0,
    ),
    Bundle(
        "uncinate fasciculus",
        "arcuate",
        (((42, 4, -34), (37, 4, -22), (33, 8, -12), (27, 20, -8), (20, 34, -10), (14, 46, -12)),),
        ((4, 4, 0), (2, 2, 0), _NO_FAN, (2, 0, 1), (4, 0, 2), (7, 0, 4)),
        radius=3.0,
    ),
    Bundle(
        "external capsule",
        "arcuate",
        (
            ((30, 14, -6), (31, 15, 6), (30, 18, 18), (30, 22, 30)),
            ((32, -4, -8), (33, -4, 4), (32, -5, 16), (31, -6, 28)),
            ((33, -18, -6), (34, -20, 4), (33, -22, 16), (32, -24, 28)),
        ),
        (_NO_FAN, _NO_FAN, _NO_FAN, _NO_FAN),
        radius=1.5,
        weight=0.5,
    ),
    Bundle(
        "cingulum",
        "cingulum",
        (
            (
                (6, 26, -8),
                (8, 40, 2),
                (8, 38, 17),
                (9, 24, 30),
                (9, 4, 35),
                (9, -16, 36),
                (9, -34, 34),
                (10, -47, 24),
                (13, -47, 8),
                (20, -38, -4),
                (25, -24, -18),
                (26, -10, -26),
            ),
        ),
        (_NO_FAN,) * 12,
        radius=2.5,
        weight=1.6,
    ),
    Bundle(
        "fornix",
        "cingulum",
        (
            ((3, 3, -4), (2, 2, 4), (2, -5, 14), (4, -18, 20), (12, -32, 15), (22, -37, 4), (28, -26, -12)),
        ),
        (_NO_FAN,) * 7,
        radius=1.5,
        weight=0.9,
    ),
    Bundle(
        "middle cerebellar peduncle",
        "callosal",
        (((0, -18, -34), (10, -22, -34), (20, -36, -35), (24, -52, -36), (26, -66, -38)),),
        (_NO_FAN, (0, 0, 3), (0, 0, 2), (4, 0, 4), (10, 0, 8)),
        radius=4.0,
        weight=1.2,
        commissure=True,
    ),
    Bundle(
        "superior cerebellar peduncle",
        "cerebellar",
        (((5, -24, -8), (5, -34, -20), (9, -46, -28), (16, -58, -36)),),
        (_NO_FAN, _NO_FAN, (1, 0, 1), (4, 0, 4)),
        radius=2.0,
        weight=0.8,
    ),
    Bundle(
        "inferior cerebellar peduncle and lemnisci",
        "cerebellar",
        (
            ((5, -44, -64), (8, -40, -48), (13, -44, -40), (22, -58, -40)),
            ((3, -36, -62), (4, -34, -42), (6, -28, -18), (12, -20, 2)),
        ),
        (_NO_FAN, _NO_FAN, (1, 0, 1), (4, 0, 4)),
        radius=2.5,
        weight=0.6,
    ),
)  # fmt: skip
"""The simulated brain's bundles."""


def curves(bundle: Bundle) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and unit tangents of a bundle's curves, in both hemispheres.

    Parameters
    ----------
    bundle : Bundle

    Returns
    -------
    points : array, shape (C, T, 3), mm
        C curves of T points each.
    tangents : array, shape (C, T, 3)
    """
    from scipy.interpolate import CubicSpline, PchipInterpolator

    sections = np.asarray(bundle.sections, np.float64)
    fan = np.asarray(bundle.fan, np.float64)
    n_sections = len(sections)
    across = np.linspace(0, 1, 1 if n_sections == 1 else 5 * n_sections)
    if n_sections > 1:
        sections = PchipInterpolator(np.linspace(0, 1, n_sections), sections, axis=0)(across)
    # spread over the cross-section as a sunflower's seeds, which needs no random numbers
    n_spread = 24
    k = np.arange(n_spread) + 0.5
    r, phi = np.sqrt(k / n_spread), k * np.pi * (3 - np.sqrt(5))
    disc = np.column_stack([r * np.cos(phi), r * np.sin(phi)])
    spread = 2 * (k * 0.7548776662 % 1) - 1
    forward = np.gradient(sections, axis=1)
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    helper = np.array([0.36, 0.48, 0.8])
    side = np.cross(forward, helper)
    side /= np.linalg.norm(side, axis=-1, keepdims=True)
    up = np.cross(forward, side)
    disc_mm = disc * bundle.radius
    way = (
        sections[:, None]
        + disc_mm[None, :, 0, None, None] * side[:, None]
        + disc_mm[None, :, 1, None, None] * up[:, None]
        + spread[None, :, None, None] * fan
    ).reshape(-1, *fan.shape)

    mirror = np.array([-1.0, 1.0, 1.0])
    if bundle.commissure:
        # at the midline a curve meets its own mirror image
        way[:, 0, 0] = 0
        way = np.concatenate([way[:, :0:-1] * mirror, way], axis=1)
    middle = way.mean(axis=0)
    if bundle.commissure:
        middle = way[len(way) // 2]
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(middle, axis=0), axis=1))])
    spline = CubicSpline(knots, way, axis=1, bc_type="natural")
    t = np.arange(0, knots[-1], POINT_SPACING)
    points, tangents = spline(t), spline(t, 1)
    tangents /= np.linalg.norm(tangents, axis=-1, keepdims=True)
    if bundle.commissure:
        return points, tangents
    return np.concatenate([points, points * mirror]), np.concatenate([tangents, tangents * mirror])
