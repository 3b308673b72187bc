"""A whole scan through the encoder, slab by slab, within a memory bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.encoder.attention import check_attention, working_bytes
from DiffusionFMLib.encoder.checkpoint import TrainedEncoder
from DiffusionFMLib.encoder.embedding import EncoderProtocol
from DiffusionFMLib.encoder.shape import EncoderShape
from DiffusionFMLib.encoder.slabs import ScanSlabs
from DiffusionFMLib.errors import DeviceError
from DiffusionFMLib.events import Report
from DiffusionFMLib.fitting.device import cpu_workers, one_thread_per_operation
from DiffusionFMLib.fitting.tiles import for_each_tile
from DiffusionFMLib.layout import Scalar

CPU_TOKENS: Final = 2048
"""Tokens that go through half a block at once on the CPU: more leave the cache."""

CUDA_TOKENS: Final = 1 << 17
"""On a GPU."""


@dataclass(frozen=True)
class EncodingOptions:
    """How a scan is encoded.

    Parameters
    ----------
    memory_mib : int, MiB
        What encoding may take beside the scan itself.
    half : bool
        Matrix products in bfloat16.
    attention : {"auto", "products", "torch-compile", "triton"}
        What attention over directions is computed by; see `RotaryTables`.
    shift : tuple of int, voxels
        How far the first patches reach beyond the volume: half a patch, for a second pass.
    with_b0 : bool
        Whether b0 volumes are encoded too.
    per_volume : bool
        Keep the tokens of each volume, not only their mean.
    """

    memory_mib: int = 2048
    half: bool = False
    attention: str = "auto"
    shift: tuple[int, int, int] = (0, 0, 0)
    with_b0: bool = False
    per_volume: bool = False


DEFAULTS: Final = EncodingOptions()


@dataclass(frozen=True, eq=False)
class Encoding:
    """Representation of a scan.

    Parameters
    ----------
    tokens : array, shape (X', Y', Z', C), float32
        Mean over volumes of each patch's tokens; 0 where there are none.
    each : array, shape (T, X', Y', Z', C), float32, or None
        Tokens of each volume.
    cls : array, shape (slabs, C), float32
        Of each slab from the bottom of the grid up; 0 where it has no tokens.
    slabs : ScanSlabs
        What was encoded: volumes, grid, and which patches are tokens.
    """

    tokens: NDArray[np.float32]
    each: NDArray[np.float32] | None
    cls: NDArray[np.float32]
    slabs: ScanSlabs

    @property
    def summary(self) -> NDArray[np.float32]:
        """The scan's representation, shape (C,): mean over slabs, by their numbers of tokens."""
        return np.average(self.cls, axis=0, weights=self.slabs.places()).astype(np.float32)

    def on_scan(self, values: NDArray[Scalar]) -> NDArray[Scalar]:
        """Values of patches, shape (X', Y', Z', ...), at the scan's voxels, shape (X, Y, Z, ...); not smoothed."""
        slabs = self.slabs
        for axis, (step, first, size) in enumerate(zip(slabs.shape.patch, slabs.start, slabs.size, strict=True)):
            values = values.take((np.arange(size) - first) // step, axis=axis)
        return slabs.layout.restored(values)


def encode(
    acquisition: Acquisition,
    trained: TrainedEncoder,
    report: Report,
    options: EncodingOptions = DEFAULTS,
    device: torch.device | None = None,
) -> Encoding:
    """Encode a scan.

    Parameters
    ----------
    acquisition : Acquisition
        Its mask says what is brain; without one, all with signal at b = 0 is.
    trained : TrainedEncoder
        On `device`.
    report : Report
    options : EncodingOptions
    device : torch.device, optional

    Raises
    ------
    ProtocolError
        If the scan has no b0, or no direction.
    InputError
        If there is no signal in the mask.
    DeviceError
        If the memory allowed does not do for one slab, or attention cannot be computed as chosen.
    JobCancelled
        If the user cancelled.
    """
    device = device or torch.device("cpu")
    check_attention(options.attention, device)
    network = trained.network
    slabs = ScanSlabs(acquisition, network.shape, options.shift, options.with_b0)
    if slabs.left_out:
        report.warning("trace", f"Volume(s) {slabs.left_out} have no gradient direction and were left out.")
    precision = torch.bfloat16 if options.half else torch.float32
    protocol = EncoderProtocol.of(slabs.gtab, network.shape, precision, device, options.attention)
    workers, tokens_at_once = _share(slabs, protocol, options, device)
    grid, c = slabs.grid, network.shape.hidden
    tokens, cls = np.zeros((*grid, c), np.float32), np.zeros((len(slabs), c), np.float32)
    each = np.zeros((len(protocol), *grid, c), np.float32) if options.per_volume else None

    def make_worker() -> Callable[[int], None]:
        def work(number: int) -> None:
            slab = slabs.slab(number)
            if not len(slab.where):
                return
            with torch.autocast(device.type, torch.bfloat16, enabled=options.half):
                found = network.encode(slab.patches.to(device), slab.positions.to(device), protocol, tokens_at_once)
            tokens.reshape(-1, c)[slab.where] = found.tokens[0].mean(0).float().cpu().numpy()
            cls[number] = found.cls[0].float().cpu().numpy()
            if each is not None:
                each.reshape(len(protocol), -1, c)[:, slab.where] = found.tokens[0].float().cpu().numpy()

        return work

    with one_thread_per_operation():
        for_each_tile(len(slabs), 1, device, make_worker, report, "Encoding", workers)
    return Encoding(tokens, each, cls, slabs)


def token_bytes(shape: EncoderShape) -> int:
    """Memory of a token in half a block: it and its sums, norms, qkv, attention, and twice the perceptron's inside."""
    return 4 * (8 * shape.hidden + 2 * shape.mlp)


def _share(
    slabs: ScanSlabs, protocol: EncoderProtocol, options: EncodingOptions, device: torch.device
) -> tuple[int, int]:
    """How many slabs are encoded at a time, and how many tokens of each go through half a block at once.

    Raises
    ------
    DeviceError
        If the memory allowed does not do for one slab.
    """
    shape, volumes, places = slabs.shape, len(protocol), int(slabs.places().max())
    patches = int(np.prod(slabs.grid))
    results = 4 * shape.hidden * patches * (volumes + 1 if options.per_volume else 1)
    # what is kept of a slab: signal, its copy in patches; tokens, while made or written; and the kernel's chunk
    voxels = int(np.prod(slabs.grid[:2])) * shape.slab * shape.patch_voxels
    slab = 4 * volumes * (3 * voxels + 4 * places * shape.hidden) + working_bytes(protocol.tables, device)
    token = token_bytes(shape)
    least = max(volumes, places + 1)
    budget = (options.memory_mib << 20) - results
    workers = cpu_workers() if device.type == "cpu" else 1
    while workers > 1 and budget < workers * (slab + least * token):
        workers -= 1
    left = budget // workers - slab
    if left < least * token:
        needed = (results + slab + least * token) / 2**20
        msg = f"Encoding {volumes} volumes, slab by slab, takes {needed:.0f} MiB; {options.memory_mib} are allowed."
        raise DeviceError(msg, "Allow more memory, or encode fewer volumes.")
    return workers, min(left // token, CPU_TOKENS if device.type == "cpu" else CUDA_TOKENS)
