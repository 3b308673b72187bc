"""Whole scans through the encoder: slabs, frames, patches, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_oracle import protocol

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol, patch_rows
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.encoder.transformer import DiffusionTransformer
from DiffusionFMLib.encoder.volume import DEFAULTS, Encoding, EncodingOptions, encode
from DiffusionFMLib.errors import DeviceError, InputError, JobCancelled, ProtocolError
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable

PATCH = (4, 4, 2)
SHAPE = EncoderShape(
    24, 2, 2, 48, 0, 0, PATCH, directions="even", position_divisor=4.0, axes="scanner", brain_only=True
)
IMAGE = replace(SHAPE, axes="image", brain_only=False, directions="polar")
GTAB = protocol({0.0: 2, 1000.0: 4, 2000.0: 3})
AFFINE = np.array([[2.0, 0, 0, -10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


def trained(shape: EncoderShape = SHAPE) -> TrainedEncoder:
    torch.manual_seed(0)
    network = DiffusionTransformer(shape).eval()
    return TrainedEncoder(network)


def scan(size: tuple[int, int, int] = (14, 11, 7), gtab: GradientTable = GTAB) -> Acquisition:
    """Noise in an ellipsoid, brighter at b = 0."""
    rng = np.random.default_rng(0)
    signal = rng.uniform(100, 500, (*size, len(gtab))).astype(np.float32) * np.where(gtab.b0_mask, 3, 1)
    centre = (np.array(size) - 1) / 2
    radius = np.linalg.norm((np.moveaxis(np.indices(size), 0, -1) - centre) / (centre * 0.8), axis=-1)
    return Acquisition(signal, AFFINE, gtab, radius < 1)


def encoded(acquisition: Acquisition, shape: EncoderShape = SHAPE, options: EncodingOptions = DEFAULTS) -> Encoding:
    return encode(acquisition, trained(shape), SilentReport(), options)


@pytest.mark.parametrize("shape", [SHAPE, IMAGE], ids=["scanner", "image"])
def test_slabs_are_what_the_network_makes_of_them(shape: EncoderShape) -> None:
    """Signal, padding, places and directions by hand for one slab in the middle."""
    acquisition = scan()
    found = encoded(acquisition, shape, replace(DEFAULTS, per_volume=True))
    assert found.tokens.shape == (4, 3, 4, 24)
    weighted = acquisition.signal[..., 2:]
    ratio = weighted / acquisition.signal[..., :2].mean(-1, keepdims=True)
    assert acquisition.mask is not None
    ratio = (ratio * acquisition.mask[..., None]).clip(0, 1.5)
    padded = np.zeros((16, 12, 8, 7), np.float32)
    padded[:14, :11, :7] = ratio
    rows = patch_rows(torch.from_numpy(padded[:, :, 2:4].transpose(3, 0, 1, 2)[None]), PATCH)
    places = torch.tensor([[4 * i + 1.5, 4 * j + 1.5, 2.5] for i in range(4) for j in range(3)])
    kept = torch.ones(12, dtype=torch.bool)
    if shape.brain_only:
        kept = (rows != 0).any(-1).any(1)[0]
    bvecs = GTAB.bvecs[2:] * (1 if shape.axes == "scanner" else np.array([-1, 1, 1]))
    told = EncoderProtocol.of(GradientTable(GTAB.bvals[2:], bvecs), shape)
    with torch.no_grad():
        expected = trained(shape).network(rows[:, :, kept], places[kept][None], [told])
    assert found.each is not None
    own = found.each[:, :, :, 1].reshape(7, 12, 24)
    np.testing.assert_allclose(own[:, kept.numpy()], expected.tokens[0], atol=2e-5)
    assert (own[:, ~kept.numpy()] == 0).all()
    np.testing.assert_allclose(found.cls[1], expected.cls[0], atol=2e-5)
    np.testing.assert_allclose(found.tokens, found.each.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.summary, np.average(found.cls, axis=0, weights=found.slabs.places()), atol=1e-6)


def test_memory_changes_nothing_but_memory() -> None:
    """As little as is allowed, against the whole slab at once; what is refused says what it takes."""
    acquisition, small = scan((48, 48, 7)), replace(DEFAULTS, memory_mib=6)
    plenty = encoded(acquisition, IMAGE)
    np.testing.assert_allclose(encoded(acquisition, IMAGE, small).tokens, plenty.tokens, atol=2e-5)
    with pytest.raises(DeviceError, match=r"takes \d MiB; 1 are allowed"):
        encoded(acquisition, IMAGE, replace(DEFAULTS, memory_mib=1))


def test_encoding_is_repeatable() -> None:
    one, two = encoded(scan()), encoded(scan())
    assert (one.tokens == two.tokens).all()
    assert (one.cls == two.cls).all()


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_how_a_scan_is_stored_does_not_matter(axes: tuple[int, int, int], flips: tuple[int, int, int]) -> None:
    acquisition = scan()
    straight = encoded(acquisition)
    kept = tuple(slice(None, None, flip) for flip in flips)
    to_straight = np.eye(4)[[*np.argsort(axes), 3]]
    mirror = np.diag([*flips, 1.0])
    mirror[:3, 3] = [(size - 1) * (flip < 0) for size, flip in zip(acquisition.shape, flips, strict=True)]
    assert acquisition.mask is not None
    stored = Acquisition(
        acquisition.signal[kept].transpose(*axes, 3),
        AFFINE @ mirror @ to_straight,
        GTAB,
        acquisition.mask[kept].transpose(axes),
    )
    found = encoded(stored)
    np.testing.assert_allclose(found.tokens, straight.tokens, atol=1e-6)
    np.testing.assert_allclose(found.slabs.affine, straight.slabs.affine)
    values = straight.tokens[..., 0]
    np.testing.assert_allclose(found.on_scan(values), straight.on_scan(values)[kept].transpose(axes))


@pytest.mark.parametrize("shift", [(0, 0, 0), (2, 2, 1)])
def test_patches_know_where_they_are(shift: tuple[int, int, int]) -> None:
    acquisition = scan()
    found = encoded(acquisition, IMAGE, replace(DEFAULTS, shift=shift))
    number = np.arange(np.prod(found.slabs.grid)).reshape(found.slabs.grid)
    on_scan = found.on_scan(number)
    assert on_scan.shape == acquisition.shape
    # a patch in the middle: its voxels, their centre, and the affine agree
    voxels = np.argwhere(on_scan == number[1, 1, 1])
    assert len(voxels) == 32
    centre = found.slabs.affine @ [1, 1, 1, 1]
    np.testing.assert_allclose(centre[:3], (AFFINE @ [*voxels.mean(0), 1])[:3])
    slab = found.slabs.slab(1)
    np.testing.assert_allclose(slab.positions[list(slab.where).index(number[1, 1, 1])], voxels.mean(0))
    signal = acquisition.signal[..., 2] / acquisition.signal[..., :2].mean(-1) * acquisition.mask
    expected = signal[tuple(voxels.T)]
    np.testing.assert_allclose(slab.patches[0, list(slab.where).index(number[1, 1, 1])], expected, rtol=1e-6)


def test_only_brain_is_encoded() -> None:
    acquisition = scan()
    assert acquisition.mask is not None
    mask = acquisition.mask & (np.arange(7) < 2)
    found = encoded(acquisition.with_mask(mask))
    present = found.slabs.present
    assert 0 < present.sum() < 12
    assert not present[:, :, 1:].any()
    assert (found.tokens[~present] == 0).all()
    assert (found.tokens[present] != 0).any(-1).all()
    np.testing.assert_allclose(found.summary, found.cls[0], atol=1e-6)
    noisy = acquisition.signal + 100 * ~mask[..., None]
    assert (encoded(Acquisition(noisy, AFFINE, GTAB, mask)).tokens == found.tokens).all()


def test_the_order_and_sign_of_directions_do_not_matter() -> None:
    acquisition = scan()
    straight = encoded(acquisition)
    order = np.random.default_rng(0).permutation(len(GTAB))
    signs = np.where(order % 2, -1.0, 1.0)[:, None]
    other = GradientTable(GTAB.bvals[order], GTAB.bvecs[order] * signs)
    found = encoded(Acquisition(acquisition.signal[..., order], AFFINE, other, acquisition.mask))
    np.testing.assert_allclose(found.tokens, straight.tokens, atol=1e-5)
    np.testing.assert_allclose(found.summary, straight.summary, atol=1e-5)


def test_which_volumes_are_encoded() -> None:
    assert list(encoded(scan()).slabs.volumes) == list(range(2, 9))
    with_b0 = encoded(scan(), options=replace(DEFAULTS, with_b0=True, per_volume=True))
    assert list(with_b0.slabs.volumes) == list(range(9))
    assert with_b0.each is not None
    assert np.isfinite(with_b0.each).all()
    bvecs = GTAB.bvecs.copy()
    bvecs[4] = 0
    said: list[str] = []

    class Listening(SilentReport):
        def warning(self, code: str, message: str) -> None:
            said.append(message)

    trace = scan(gtab=GradientTable(GTAB.bvals, bvecs))
    found = encode(trace, trained(), Listening())
    assert list(found.slabs.volumes) == [2, 3, 5, 6, 7, 8]
    assert said == ["Volume(s) 4 have no gradient direction and were left out."]


@pytest.mark.parametrize(
    ("counts", "message"), [({1000.0: 4}, "has no b0"), ({0.0: 4}, "no volume with a gradient direction")]
)
def test_protocols_that_do_not_do(counts: dict[float, int], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        ScanSlabs(scan(gtab=protocol(counts)), SHAPE, (0, 0, 0), with_b0=False)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(InputError, match="mask of dwi is empty"):
        encoded(scan().with_mask(np.zeros((14, 11, 7), bool)))


def test_half_precision_stays_near() -> None:
    single, half = encoded(scan()), encoded(scan(), options=replace(DEFAULTS, half=True))
    error = np.linalg.norm(half.tokens - single.tokens) / np.linalg.norm(single.tokens)
    assert 1e-6 < error < 0.05


def test_a_cancelled_job_ends() -> None:
    class Cancelled(SilentReport):
        def progress(self, done: int, total: int, stage: str) -> None:
            assert stage == "Encoding"
            if done:
                raise JobCancelled

    with pytest.raises(JobCancelled):
        encode(scan(), trained(), Cancelled())


GROWTH = """
import re, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, "Testing")
from test_encoder_volume import DEFAULTS, IMAGE, encoded, replace, scan
from encoder_oracle import protocol

gtab = protocol({0.0: 1, 1000.0: 40})
big, options = scan((96, 96, 8), gtab), replace(DEFAULTS, memory_mib=int(sys.argv[1]))
encoded(scan(gtab=gtab), IMAGE, options)

def resident(key):
    return int(re.search(rf"{key}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
encoded(big, IMAGE, options)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux says of memory")
def test_memory_stays_within_what_is_allowed(project_root: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(project_root)}
    process = subprocess.run(
        [sys.executable, "-c", GROWTH, "40"],
        cwd=project_root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    # what the whole slab would take at once is more
    assert 10 < float(process.stdout) < 40
