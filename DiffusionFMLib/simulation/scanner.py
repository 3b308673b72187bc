"""The simulated scanner: grid, gradient directions, coil and noise; `simulate` runs the whole simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.maps import MapSpec, ParameterMap
from DiffusionFMLib.physics import DKI, DTI, LogLinearModel
from DiffusionFMLib.settings import SimulateSettings
from DiffusionFMLib.simulation import anatomy, lesions, tissue

FIELD_OF_VIEW: Final = (184.0, 216.0, 176.0)
CENTRE: Final = (0.0, -18.0, 3.0)
"""Size and middle of the scanned box, mm; it holds the whole ICBM152 brain."""

TILT: Final = (6.0, -1.5, 2.0)
"""Rotation of the slices about x, y and z, degrees: a scan is rarely straight."""

DENSE: Final = 30
"""Directions of each shell that the truth is fitted to."""

TRUTH: Final = {
    DTI.name: ("fa", "md", "v1", "tensor", "s0"),
    DKI.name: ("mk", "ak", "rk", "mkt", "fa", "md"),
}
"""Maps that are written as truth, by model."""

TISSUE_SPEC: Final = MapSpec(
    "tissue", "Tissue", "", "Volume fractions of white matter, grey matter and CSF.", (0.0, 1.0), "grey",
    ("wm", "gm", "csf"),
)  # fmt: skip
LESION_SPEC: Final = MapSpec("lesion", "Lesion", "", "Where the simulated oedema is.", (0.0, 1.0), "labels")
BRAIN_SPEC: Final = MapSpec("brain", "Brain", "", "Where the simulated brain is.", (0.0, 1.0), "labels")


@dataclass(frozen=True, eq=False)
class Simulated:
    """A simulated scan and the truth it was made from.

    Parameters
    ----------
    acquisition : Acquisition
        Noisy scan; its mask is the true brain.
    truth : dict of ParameterMap
        The tensor's, ``tissue`` fractions, and the labels ``brain`` and ``lesion``.
    kurtosis : dict of ParameterMap
        The kurtosis model's; empty with one shell.
    """

    acquisition: Acquisition
    truth: dict[str, ParameterMap]
    kurtosis: dict[str, ParameterMap]


def simulate(settings: SimulateSettings, report: Report) -> Simulated:
    """Whole-brain scan with known truth, on the ICBM152 tissue maps.

    Parameters
    ----------
    settings : SimulateSettings
        The same settings give the same scan.
    report : Report

    Returns
    -------
    Simulated
    """
    rng = np.random.default_rng(settings.seed)
    shape, affine = grid(settings.voxel_size)
    gtab = gradient_table(settings.protocol, settings.n_b0)

    report.progress(0, 1, "Anatomy")
    world = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    warp = anatomy.Warp.draw(rng)
    template = warp.points(world)
    fractions = anatomy.tissue(template, settings.voxel_size, report)
    report.check()
    lesion = lesions.oedema(template, fractions.wm, rng)
    if not settings.lesion:
        lesion = lesions.Lesion(np.zeros_like(lesion.water), np.zeros_like(lesion.label))
    coil = _coil(world, rng)
    texture = smooth_texture(shape, settings.voxel_size, rng)
    voxels = np.stack([fractions.wm, fractions.gm, fractions.csf], axis=-1)
    # the mask's edge is sharp, the brain's is not
    head = voxels.sum(axis=-1) > 0.02
    fibres = warp.fibres(world[head], anatomy.Architecture(report).fibres(template[head]))
    contents = tissue.fill(voxels[head], fibres, lesion.water[head], texture[head])
    del world, template, fibres, texture

    sigma = tissue.WM_S0 / settings.snr
    signal = np.empty((*shape, len(gtab)), np.float32)
    for n in range(len(gtab)):
        report.progress(n, len(gtab), "Scanning")
        clean = contents.signal(float(gtab.bvals[n]), gtab.bvecs[n])
        # Rician: the magnitude of a complex signal with independent Gaussian noise in both channels
        imaginary = sigma * _noise(shape, settings.noise_correlation, rng)
        real = sigma * _noise(shape, settings.noise_correlation, rng)
        real[head] += clean * coil[head]
        signal[..., n] = np.hypot(real, imaginary)
    report.progress(len(gtab), len(gtab), "Scanning")

    acquisition = Acquisition(
        signal,
        affine,
        gtab,
        mask=fractions.brain,
        name="simulated_dwi",
        notes=(f"Simulated on the ICBM152 template: SNR {settings.snr:g}, seed {settings.seed}.",),
    )
    brain = head & fractions.brain
    models: list[LogLinearModel] = [DTI(), DKI()] if len(gtab.shells) > 1 else [DTI()]
    # of so many directions that the truth does not depend on how many the scan has
    dense = gradient_table(tuple((bval, DENSE) for bval, _ in settings.protocol), 1)
    found = _noise_free_fits(models, contents, dense, report)
    truth, *kurtosis = (
        _maps_of(model, theta[brain[head]], brain, affine, settings) for model, theta in zip(models, found, strict=True)
    )
    for spec, volume in ((TISSUE_SPEC, voxels), (BRAIN_SPEC, brain), (LESION_SPEC, lesion.label & brain)):
        provenance = {"source": "simulation", "settings": _told(settings)}
        truth[spec.name] = ParameterMap(spec, volume.astype(np.float32), affine, provenance)
    return Simulated(acquisition, truth, kurtosis[0] if kurtosis else {})


def grid(voxel_size: float) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of the scan: left-handed (stored left to right as LAS), slightly oblique."""
    from scipy.spatial.transform import Rotation

    nx, ny, nz = (2 * round(edge / voxel_size / 2) for edge in FIELD_OF_VIEW)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", TILT, degrees=True).as_matrix() @ np.diag([-1, 1, 1]) * voxel_size
    affine[:3, 3] = np.array(CENTRE) - affine[:3, :3] @ ((np.array([nx, ny, nz]) - 1) / 2)
    return (nx, ny, nz), affine


def gradient_table(shells: tuple[tuple[float, int], ...], n_b0: int) -> GradientTable:
    """b0 volumes first, then each shell's directions, (b-value, count), spread evenly over the sphere."""
    from scipy.spatial.transform import Rotation

    bvals, bvecs = [np.zeros(n_b0)], [np.zeros((n_b0, 3))]
    for place, (bval, count) in enumerate(shells):
        # turned against each other, so that no two shells share their directions
        turn = Rotation.from_rotvec(place * np.array([0.4, 0.7, 1.1])).as_matrix()
        bvals.append(np.full(count, bval))
        bvecs.append(repelled_directions(count) @ turn.T)
    return GradientTable(np.concatenate(bvals), np.concatenate(bvecs))


def repelled_directions(count: int) -> NDArray[np.float64]:
    """Unit vectors, shape (count, 3), of least electrostatic energy with their antipodes (Jones et al., 1999)."""
    from scipy.optimize import minimize

    def energy(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        raw = flat.reshape(count, 3)
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        u = raw / length
        gradient = np.zeros_like(u)
        total = 0.0
        for sign in (1.0, -1.0):
            apart = u[:, None] - sign * u[None]
            distance = np.linalg.norm(apart, axis=-1)
            np.fill_diagonal(distance, np.inf)
            total += (1 / distance).sum() / 2
            gradient -= (apart / distance[..., None] ** 3).sum(axis=1)
        gradient = (gradient - (gradient * u).sum(axis=1, keepdims=True) * u) / length
        return total, gradient.ravel()

    # start from a spiral on the half sphere: close to even already, and without random numbers
    k = np.arange(count) + 0.5
    z, phi = 1 - k / count, k * np.pi * (3 - np.sqrt(5))
    start = np.column_stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z])
    result = minimize(energy, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    raw = result.x.reshape(count, 3)
    return raw / np.linalg.norm(raw, axis=1, keepdims=True)


def _coil(world: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    """Receive sensitivity: brighter near the coil's elements, off centre by chance."""
    offset = rng.uniform(-15, 15, 3) + CENTRE
    r2 = (((world - offset) / (90, 105, 90)) ** 2).sum(axis=-1)
    return (0.9 + 0.14 * r2 / (1 + 0.25 * r2)).astype(np.float32)


def _noise(shape: tuple[int, int, int], correlation: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Standard normal noise, correlated between neighbours along each axis as interpolation makes it."""
    noise = rng.standard_normal(shape, np.float32)
    if not correlation:
        return noise
    # a moving average with weights 1 : a has the correlation a / (1 + a^2)
    weight = (1 - np.sqrt(1 - 4 * correlation**2)) / (2 * correlation)
    for axis in range(3):
        noise = noise + np.float32(weight) * np.roll(noise, 1, axis)
    return noise / np.float32((1 + weight**2) ** 1.5)


def smooth_texture(shape: tuple[int, int, int], voxel_size: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth random field with standard deviation 0.2, correlated over about a centimetre."""
    from scipy import ndimage

    coarse = ndimage.gaussian_filter(rng.normal(size=[max(n * voxel_size / 6, 4).__ceil__() for n in shape]), 0.8)
    coarse *= 0.2 / coarse.std()
    zoom = np.array(shape) / coarse.shape
    field = ndimage.affine_transform(coarse, 1 / zoom, output_shape=shape, order=1, mode="nearest")
    return np.clip(field, -0.6, 0.6).astype(np.float32)


def _noise_free_fits(
    models: list[LogLinearModel], contents: tissue.Microstructure, gtab: GradientTable, report: Report
) -> list[NDArray[np.float64]]:
    """Parameters of each model, shape (V, P), fitted to signals without noise."""
    inverses = [np.linalg.pinv(model.design(gtab)) for model in models]
    found = [np.zeros((len(contents.csf), len(inverse))) for inverse in inverses]
    for n, (bval, direction) in enumerate(zip(gtab.bvals, gtab.bvecs, strict=True)):
        report.progress(n, len(gtab), "Truth")
        log_signal = np.log(contents.signal(float(bval), direction))[:, None]
        for theta, inverse in zip(found, inverses, strict=True):
            theta += log_signal * inverse[:, n]
    report.progress(len(gtab), len(gtab), "Truth")
    return found


def _maps_of(
    model: LogLinearModel,
    theta: NDArray[np.float64],
    brain: NDArray[np.bool_],
    affine: NDArray[np.float64],
    settings: SimulateSettings,
) -> dict[str, ParameterMap]:
    """Maps of parameters, shape (V, P), in the brain."""
    import torch

    signals = f"noise-free signals of {DENSE} directions on each of the scan's shells"
    source = f"{model.title}, fitted to {signals}: what they make of the tissue, not a property of it"
    provenance = {"source": source, "method": "ols", "settings": _told(settings)}
    values, truth = model.maps(torch.from_numpy(theta)), {}
    for spec in model.map_specs:
        if spec.name in TRUTH[model.name]:
            value = values[spec.name].numpy()
            volume = np.zeros((*brain.shape, *value.shape[1:]), np.float32)
            volume[brain] = value
            truth[spec.name] = ParameterMap(spec, volume, affine, provenance)
    return truth


def _told(settings: SimulateSettings) -> dict[str, Any]:
    """What makes the same scan again."""
    return {name: value for name, value in settings.to_dict().items() if name != "out"}
