"""Where a scan surprises the encoder: how far it lies from what is expected of it, in units of its noise."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.mae import Sample, reconstruct, shells_of
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.encoder.volume import DEFAULTS
from DiffusionFMLib.errors import ProtocolError
from DiffusionFMLib.events import PartReport, Report
from DiffusionFMLib.fitting.device import one_thread_per_operation
from DiffusionFMLib.fitting.tiles import for_each_tile
from DiffusionFMLib.overlays.cells import Cells, half_patch
from DiffusionFMLib.overlays.memory import slabs_at_once, thinned, volume_bytes, working_bytes
from DiffusionFMLib.preprocessing.noise import estimate_noise, noise_in_blocks

MIN_VOLUMES: Final = 4
"""With fewer, there is hardly anything to expect from."""


def surprise(
    acquisition: Acquisition,
    trained: TrainedEncoder,
    report: Report,
    seed: int = 0,
    device: torch.device | None = None,
    memory_mib: int = DEFAULTS.memory_mib,
) -> NDArray[np.float32]:
    """Root mean square of measured minus expected signal over its noise, shape `Cells.grid`; 0 outside the brain.

    Half of the directions are expected from the other half, and the other way round: twice, with patches half a patch
    apart and other halves.

    Parameters
    ----------
    acquisition : Acquisition
        With a mask.
    trained : TrainedEncoder
        On `device`, with a decoder.
    report : Report
    seed : int
    device : torch.device, optional
    memory_mib : int, MiB
        What it may take; where that is not enough for all directions, some are left out.

    Raises
    ------
    ProtocolError
        If the scan has fewer than four directions, or no b0.
    DeviceError
        If the memory does not do for four.
    """
    device = device or torch.device("cpu")
    shape = trained.network.shape
    noise, allowed = noise_over_b0(acquisition), working_bytes(memory_mib)
    whole = ScanSlabs(acquisition, shape, (0, 0, 0), with_b0=False)
    count = max(MIN_VOLUMES, allowed // volume_bytes(whole))
    if count < len(whole.volumes):
        note = f"Surprise was computed with {count} of {len(whole.volumes)} directions, within the memory allowed."
        report.warning("surprise", note)
        acquisition = thinned(acquisition, count, note)
    maps = []
    for number, shift in enumerate(((0, 0, 0), half_patch(shape))):
        slabs = ScanSlabs(acquisition, shape, shift, with_b0=False)
        if len(slabs.volumes) < MIN_VOLUMES:
            msg = f"{acquisition.name} has {len(slabs.volumes)} directions; expected {MIN_VOLUMES} at least."
            raise ProtocolError(msg, "Leave the surprise out.")
        at_once = slabs_at_once(slabs, allowed, device, "Surprise")
        hidden = _half(slabs, np.random.default_rng([seed, number]))
        maps.append(
            (slabs, _error(slabs, trained, noise, (hidden, ~hidden), PartReport(report, number, 2), device, at_once))
        )
    return np.sqrt(Cells(maps[0][0]).mean(maps))


def noise_over_b0(acquisition: Acquisition) -> NDArray[np.float32]:
    """Standard deviation of the signal over the mean b0, shape (X, Y, Z); 0 outside the mask."""
    mask = acquisition.mask if acquisition.mask is not None else np.ones(acquisition.shape, bool)
    noise = estimate_noise(acquisition, mask) or noise_in_blocks(acquisition, mask)
    b0 = acquisition.signal[..., acquisition.gtab.b0_mask].mean(-1)
    ratio = np.zeros(acquisition.shape, np.float32)
    np.divide(noise.sigma_map, b0, out=ratio, where=mask & (b0 > 0))
    return ratio


def _half(slabs: ScanSlabs, rng: np.random.Generator) -> Tensor:
    """Half of the volumes, of each shell as nearly as can be, shape (T,), bool."""
    hidden, more = torch.zeros(len(slabs.volumes), dtype=torch.bool), bool(rng.integers(2))
    for shell in slabs.gtab.shells:
        drawn = rng.permutation(np.array(shell.indices))
        # where a shell's number is odd, one half gets more of this one, the other of the next
        hidden[torch.from_numpy(drawn[: (len(drawn) + more) // 2])] = True
        more ^= bool(len(drawn) % 2)
    return hidden


def _error(
    slabs: ScanSlabs,
    trained: TrainedEncoder,
    noise: NDArray[np.float32],
    halves: tuple[Tensor, Tensor],
    report: Report,
    device: torch.device,
    at_once: int,
) -> NDArray[np.float32]:
    """Mean square of what was not expected, over the noise's, shape of the grid of patches."""
    network = trained.network
    protocol = EncoderProtocol.of(slabs.gtab, network.shape, device=device)
    result = np.zeros(slabs.grid, np.float32)

    def work(number: int) -> None:
        slab = slabs.slab(number)
        if not len(slab.where):
            return
        sigma = slabs.rows(noise, number).to(device)
        sample = Sample(
            slab.patches.to(device), sigma > 0, slab.positions.to(device), slabs.kept(number).to(device),
            slabs.grid_of(number), protocol, shells_of(slabs.gtab).to(device),
        )  # fmt: skip
        square = sigma.new_zeros(len(sigma))
        for hidden in halves:
            masked = hidden.to(device)[:, None].expand(-1, len(sigma))
            left = (reconstruct(network, sample, masked) - sample.patches)[hidden] / sigma.clamp_min(1e-6)
            square += (left.square() * sample.inside).sum((0, 2))
        count = sample.inside.sum(1) * len(slabs.volumes)
        result.reshape(-1)[slab.where] = (square / count.clamp_min(1)).cpu().numpy()

    with one_thread_per_operation():
        for_each_tile(len(slabs), 1, device, lambda: work, report, "Surprise", at_once)
    return result
