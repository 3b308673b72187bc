"""What was written for processors, on a GPU: the same answers. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from triton_attention import TritonTests

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.attention import rotary_attention
from DiffusionFMLib.encoder.checkpoint import encoder_file, load_encoder
from DiffusionFMLib.encoder.drope import RotaryTables, volume_distances
from DiffusionFMLib.encoder.volume import DEFAULTS, encode
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.gradients import GradientTable
from DiffusionFMLib.physics import DKI, DTI, NODDI, SignalModel
from DiffusionFMLib.physics.tensor_arrays import spread_directions
from DiffusionFMLib.prior.fitting import fit
from DiffusionFMLib.settings import FitSettings
from DiffusionFMLib.training.command import train
from DiffusionFMLib.training.settings import TrainSettings

GPU = torch.device("cuda")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def two_shells() -> GradientTable:
    g = spread_directions(8)
    return GradientTable(np.r_[0.0, np.repeat([1000.0, 2000.0], 8)], np.concatenate([np.zeros((1, 3)), g, g]))


def scan() -> Acquisition:
    """NODDI's signals of crossing directions, with noise, in a small box."""
    rng = np.random.default_rng(0)
    shape, gtab = (20, 18, 12), two_shells()
    theta = np.zeros((*shape, 7), np.float32)
    theta[..., :3] = [0.6, 0.0, 0.8]
    theta[:10, ..., :3] = [0.0, 1.0, 0.0]
    theta[..., 3:] = [0.6, 0.15, 0.1, 6.0]
    clean = NODDI().signal(torch.from_numpy(theta), gtab).numpy()
    noise = 15 * rng.normal(size=(2, *clean.shape))
    signal = np.hypot(clean + noise[0], noise[1]).astype(np.float32)
    return Acquisition(signal, np.diag([-2.0, 2, 2, 1]), gtab, np.ones(shape, bool))


def attention(device: torch.device, dtype: torch.dtype, choice: str = "auto") -> list[Tensor]:
    """Attention and the gradients of its inputs, on the CPU again."""
    gtab = two_shells()
    distances = volume_distances(gtab.subset(np.flatnonzero(~gtab.b0_mask)))
    tables = RotaryTables.of(distances, 32, "official", dtype, device, attention=choice)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(30, 2, 16, 32, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)]
    found = rotary_attention(*given, tables)
    gradients = torch.autograd.grad(found.float().square().sum(), given)
    return [part.detach().float().cpu() for part in (found, *gradients)]


@pytest.mark.parametrize("choice", ["auto", "torch-compile"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-4), (torch.bfloat16, 2e-2)])
def test_attention(dtype: torch.dtype, error: float, choice: str) -> None:
    expected = attention(torch.device("cpu"), torch.float32)
    for found, wanted in zip(attention(GPU, dtype, choice), expected, strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < error


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
class TestTriton(TritonTests):
    device = GPU


@pytest.mark.parametrize("choice", ["auto", "torch-compile", "triton"])
@pytest.mark.parametrize(("half", "error"), [(False, 1e-3), (True, 3e-2)])
def test_features_of_a_scan(half: bool, error: float, choice: str) -> None:
    path, options = encoder_file(""), replace(DEFAULTS, half=half, attention=choice)
    found = encode(scan(), load_encoder(path, GPU), SilentReport(), options, GPU).tokens
    expected = encode(scan(), load_encoder(path), SilentReport()).tokens
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < error


@pytest.mark.parametrize("model", [DTI(), DKI(), NODDI()], ids=lambda m: m.name)
@pytest.mark.parametrize("adaptation", ["none", "adapt"])
def test_the_prior(model: SignalModel, adaptation: str) -> None:
    settings = FitSettings(model=model.name, method="prior", adaptation=adaptation)
    gpu, cpu = (fit(scan(), model, replace(settings, device=d), SilentReport()).maps for d in (GPU.type, "cpu"))
    for name in ("fa", "md") if model.name != "noddi" else ("ndi", "odi"):
        difference = np.abs(gpu[name].data - cpu[name].data) / np.abs(cpu[name].data).mean()
        assert np.percentile(difference, 99) < (2e-3 if adaptation == "none" else 2e-2)


@pytest.mark.parametrize("model", ["dti", "dki", "encoder"])
def test_training(model: str, tmp_path: Path) -> None:
    settings = TrainSettings(out=str(tmp_path), anatomies=str(tmp_path), preset="tiny", model=model, steps=3)
    assert train(replace(settings, device=GPU.type), SilentReport()).is_file()
