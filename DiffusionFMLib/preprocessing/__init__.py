"""What is done to a scan before a model is fitted: denoising, Gibbs ringing, motion, brain mask; in that order."""

from __future__ import annotations

from DiffusionFMLib.acquisition import Acquisition
from DiffusionFMLib.errors import InputError
from DiffusionFMLib.events import Report
from DiffusionFMLib.settings import ComputeSettings

__all__ = ["prepare"]


def prepare(acquisition: Acquisition, settings: ComputeSettings, report: Report) -> Acquisition:
    """The scan as a fit or the encoder gets it: what the settings ask for was done, and it has a brain mask.

    Parameters
    ----------
    acquisition : Acquisition
        Its mask is kept; one is made where it has none.
    settings : ComputeSettings
        `denoise`, `gibbs` and `motion` are read.
    report : Report
        Stages ``denoise``, ``gibbs``, ``motion`` and ``mask``. All of them stop within a second of a cancellation.

    Raises
    ------
    InputError
        If the scan has no signal.
    ProtocolError
        If it has too few volumes to be denoised.
    JobCancelled
    """
    # these pull in DIPY and SciPy, which Slicer's own process need not load
    from DiffusionFMLib.preprocessing.denoise import mppca, remove_gibbs
    from DiffusionFMLib.preprocessing.masking import brain_mask, mask_doubt
    from DiffusionFMLib.preprocessing.motion import correct_motion

    if settings.denoise == "mppca":
        acquisition = mppca(acquisition, report)
    if settings.gibbs:
        acquisition = remove_gibbs(acquisition, report)
    if settings.motion:
        acquisition, _ = correct_motion(acquisition, report)
    if acquisition.mask is not None:
        return acquisition
    report.progress(0, 1, "mask")
    mask = brain_mask(acquisition)
    if not mask.any():
        msg = f"{acquisition.name} holds no signal: none of its b0 values is above zero."
        raise InputError(msg, "Check that the right series was exported.")
    doubt = mask_doubt(acquisition, mask)
    if doubt:
        report.warning("brain-mask", f"{doubt} Look at it, or draw one and choose it as the mask.")
    report.progress(1, 1, "mask")
    volume = mask.sum() * acquisition.voxel_volume / 1000
    note = f"Brain mask made automatically (DIPY median_otsu, {volume:.0f} ml)."
    return acquisition.with_note(note).with_mask(mask)
