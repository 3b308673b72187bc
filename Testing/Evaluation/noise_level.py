"""Whether the noise is found where six directions are all there is.

    python Testing/Evaluation/noise_level.py [--data FOLDER]

Level, and correlation of neighbours along each axis, from one b0 and six directions, where no volume is left to show
noise by itself. Beside them what `estimate_noise` finds in all volumes of the shell, in real scans, or the truth, in
simulated heads that no training saw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from anatomy import DATA
from calibration import heads
from numpy.typing import NDArray
from prior import well_conditioned
from rich.console import Console
from rich.table import Table
from simulated_scans import Scan, protocol

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.events import SilentReport
from DiffusionFMLib.io import read_acquisition
from DiffusionFMLib.preprocessing.masking import brain_mask
from DiffusionFMLib.preprocessing.noise import estimate_noise, noise_in_blocks
from DiffusionFMLib.settings import ScanSettings

REAL = (
    "test/philips_bangalore_32dir/dwi",
    "test/siemens_xa30_b2500_APPA_T1/dwi_AP",
    "train/niivue_dsistudio_b2000/dwi",
    "train/philips_elition_16dir_T1/dwi",
    "train/philips_ukb_mb3_partial/dwi",
    "train/philips_vanderbilt_15dir_b2000/dwi",
    "train/siemens_decubitus_b1000_T1/dwi_HFS",
    "train/toshiba_galan_b1500/dwi_10006_DTI_ALL_20d",
    "train/uih_16dir_b950_T1/dwi_AP",
)
"""Of one shell each, with 12 directions or more."""

GIVEN = 6
SNRS = (15.0, 30.0, 60.0)
CORRELATIONS = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.2))


def largest_shell(scan: Acquisition) -> Acquisition:
    """The b0s and the shell with most directions."""
    shell = max(scan.gtab.shells, key=len)
    return scan.subset(np.sort(np.r_[np.flatnonzero(scan.gtab.b0_mask), np.array(shell.indices)]), "a shell")


def row_of(
    name: str, few: Acquisition, mask: NDArray[np.bool_], true: float, snr: float, correlation: tuple[float, ...]
) -> list[str]:
    """What the table tells of a scan of few volumes whose noise is known."""
    found = noise_in_blocks(few, mask)
    told = (" ".join(f"{part:.2f}" for part in parts) for parts in (correlation, found.correlation))
    return [name, few.gtab.summary(), f"{snr:.0f}", f"{found.sigma / true:.2f}", *told]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the real scans")
    parser.add_argument("--heads", type=int, default=1, help="simulated brains, and as many random phantoms")
    arguments = parser.parse_args()
    table = Table("scan", "given", "SNR", "level", "correlation", "found", title="Level found over that which is there")
    for name in REAL:
        path = arguments.data / f"{name}.nii.gz"
        if path.is_file():
            scan = largest_shell(read_acquisition(ScanSettings(dwi=str(path)), SilentReport()))
            mask = brain_mask(scan)
            if noise := estimate_noise(scan, mask):
                few = scan.subset(well_conditioned(scan.gtab, GIVEN, np.random.default_rng(0)), "few")
                snr = float(np.median(scan.signal[mask][:, scan.gtab.b0_mask].mean(1))) / noise.sigma
                table.add_row(*row_of(name.split("/")[1], few, mask, noise.sigma, snr, noise.correlation))
    for number, head in enumerate(heads(arguments.heads)):
        for correlation in CORRELATIONS:
            for snr in SNRS:
                one = Scan.of(head, protocol(GIVEN, snr, correlation), 0)
                name = f"{'phantom' if number % 2 else 'brain'} {number // 2}"
                true = float(np.median(one.sigma))
                table.add_row(*row_of(name, one.acquisition, one.mask, true, snr, correlation))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
