"""One frozen dataclass per job: the CLI's flags, a request's JSON and the module's parameter node come from it.

Loads without torch, so that Slicer's own process can read it.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from DiffusionFMLib.errors import SettingsError
from DiffusionFMLib.gradients import B0_THRESHOLD
from DiffusionFMLib.physics import METHODS, MODELS

S = TypeVar("S", bound="Settings")

_SHELL = r"[1-9][0-9]{2,3}:[1-9][0-9]{0,2}"
SHELLS = f"{_SHELL}(,{_SHELL})*"
"""Form of a protocol as text."""


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    unit: str = "",
    form: str = "",
    path: bool = False,
    advanced: bool = False,
) -> Any:
    """Declare a setting: default, help, and what the CLI, the GUI and the validation need to know.

    Parameters
    ----------
    default : str, int, float or bool
        Its type is the setting's type. An empty string means "not given".
    help : str
        One sentence, for ``--help`` and tooltips.
    choices : tuple of str
    minimum, maximum : float
        Allowed range, inclusive.
    unit : str
    form : str
        Regular expression that a text has to match; the default is its example.
    path : bool
        It names a file or folder.
    advanced : bool
        Folded away in the GUI.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "unit": unit,
        "form": form,
        "path": path,
        "advanced": advanced,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Base of all jobs' settings: validation, and to and from plain dictionaries."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for f in fields(self):
            object.__setattr__(self, f.name, _validated(f, types[f.name], getattr(self, f.name)))

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls: type[S], values: dict[str, Any]) -> S:
        """Settings from a dictionary; what is absent keeps its default.

        Raises
        ------
        SettingsError
            If a name is unknown, or a value of the wrong type or out of range.
        """
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                msg = f"There is no setting '{name}' for this job; it has {', '.join(sorted(known))}."
                raise SettingsError(msg, "Correct or remove it.")
        return cls(**values)


def _validated(f: Field[Any], kind: type, value: Any) -> Any:
    """The value as the setting's type; ints are accepted for floats, nothing else is converted."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    name = f.name.replace("_", " ")
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        msg = f"{name} is {value!r}; expected {kind.__name__}."
        raise SettingsError(msg, f"{f.metadata['help']}")
    choices, low, high = f.metadata["choices"], f.metadata["minimum"], f.metadata["maximum"]
    if choices and value not in choices and value != f.default:
        msg = f"{name} is {value!r}; expected one of {', '.join(choices)}."
        raise SettingsError(msg, "Choose one of them.")
    if f.metadata["form"] and not re.fullmatch(f.metadata["form"], str(value)):
        msg = f"{name} is {value!r}; expected something like {f.default}."
        raise SettingsError(msg, f"{f.metadata['help']}")
    # written so that NaN fails too
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        span = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
        msg = f"{name} is {value}; expected {span}."
        raise SettingsError(msg, "Choose a value in that range.")
    if f.default is MISSING:
        msg = f"Setting {f.name} has no default."
        raise TypeError(msg)
    return value


@dataclass(frozen=True)
class ScanSettings(Settings):
    """Which scan, and how to read it (job ``info``)."""

    dwi: str = option("", "Diffusion scan: NIfTI, NRRD/NHDR or a DICOM folder.", path=True)
    bval: str = option("", "b-values; the scan's own name with .bval when not given.", path=True)
    bvec: str = option("", "Gradient directions; the scan's own name with .bvec when not given.", path=True)
    series: str = option("", "Which series of a DICOM folder that holds several: its number.")
    mask: str = option("", "Brain mask in the scan's grid; made automatically when not given.", path=True)
    t1w: str = option("", "T1-weighted image of the same head; no model of this version uses it.", path=True)
    b0_threshold: float = option(
        B0_THRESHOLD,
        "Volumes at or below this b-value are b0.",
        minimum=0,
        maximum=500,
        unit="s/mm2",
        advanced=True,
    )


@dataclass(frozen=True)
class ComputeSettings(ScanSettings):
    """What every computation on a scan is asked for: where results go, what is done before, and where it computes."""

    out: str = option("", "Folder that the results go to.", path=True)
    denoise: str = option("none", "Denoising first.", choices=("none", "mppca"), advanced=True)
    gibbs: bool = option(False, "Remove Gibbs ringing first.", advanced=True)
    motion: bool = option(False, "Align the volumes first, and rotate the gradients with them.", advanced=True)
    device: str = option("auto", "Where to compute.", choices=("auto", "cpu", "cuda"))
    seed: int = option(0, "Seed of everything random.", minimum=0, maximum=2**31 - 1, advanced=True)
    memory_mib: int = option(
        2048,
        "Working memory of voxel-wise fits and of the encoder, beyond the scan itself.",
        minimum=16,
        maximum=1 << 20,
        unit="MiB",
        advanced=True,
    )


@dataclass(frozen=True)
class FitSettings(ComputeSettings):
    """Maps of a scan (job ``fit``)."""

    model: str = option("dti", "Signal model.", choices=tuple(MODELS))
    method: str = option("", "Estimator; the model's first when not given.", choices=tuple(METHODS))
    weights: str = option(
        "", "Weights of the generative prior; those that come with it when not given.", path=True, advanced=True
    )
    adaptation: str = option(
        "adapt",
        "How the generative prior is fitted to the scan: as it is; adapted by volumes left out, about twice as long; "
        "or with samples too, for uncertainty beyond first order, which takes very long.",
        choices=("none", "adapt", "sample"),
        advanced=True,
    )
    max_bval: float = option(
        0.0,
        "Leave out volumes above this b-value, for instance 1500 for the tensor; 0 takes all.",
        minimum=0,
        maximum=100_000,
        unit="s/mm2",
        advanced=True,
    )
    reweightings: int = option(
        1,
        "How often WLS takes its weights from the fit before: more lower the bias of MD at low SNR, FA gets noisier.",
        minimum=1,
        maximum=10,
        advanced=True,
    )
    standard_errors: bool = option(False, "Also how far each map would vary if the scan were repeated.", advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.method:
            object.__setattr__(self, "method", MODELS[self.model].methods[0])


@dataclass(frozen=True)
class TrackSettings(FitSettings):
    """Streamlines of a scan, and the maps they stand on (job ``track``)."""

    tracker: str = option(
        "deterministic",
        "How a streamline picks its next direction.",
        choices=("deterministic", "probabilistic"),
    )
    seed_mask: str = option(
        "", "Where to start streamlines, in the scan's grid; the whole brain when not given.", path=True
    )
    seed_label: int = option(0, "Which label of the seed mask; 0 takes all of them.", minimum=0, maximum=65535)
    seed_density: float = option(1.0, "Seeds per voxel.", minimum=0.001, maximum=64)
    seed_fa: float = option(0.25, "Start only where FA is above this.", minimum=0, maximum=1)
    stop_fa: float = option(0.15, "Stop where FA falls below this.", minimum=0, maximum=1)
    max_angle: float = option(30.0, "Largest turn per step.", minimum=1, maximum=90, unit="degrees")
    step: float = option(
        0.0,
        "Step length; half the smallest voxel edge when 0.",
        minimum=0,
        maximum=10,
        unit="mm",
        advanced=True,
    )
    min_length: float = option(20.0, "Drop shorter streamlines.", minimum=0, maximum=1000, unit="mm")
    max_length: float = option(250.0, "Drop longer streamlines.", minimum=1, maximum=1000, unit="mm")
    max_count: int = option(20000, "Keep at most so many streamlines; 0 keeps all.", minimum=0, maximum=10_000_000)
    tract_format: str = option("trx", "File format of the streamlines.", choices=("trx", "tck", "trk"))


@dataclass(frozen=True)
class EncodeSettings(ComputeSettings):
    """Learned features of a scan, and maps of what the encoder attends to (job ``encode``)."""

    encoder: str = option(
        "", "Weights of the encoder; those that come with it when not given.", path=True, advanced=True
    )
    overlays: str = option(
        "standard",
        "Which maps: the standard ones, and those of the features; or all, of which the influence of places takes "
        "minutes.",
        choices=("standard", "all"),
    )
    half: bool = option(False, "Matrix products in bfloat16: faster where the hardware has it.", advanced=True)
    attention: str = option(
        "auto",
        "What computes the features' attention over directions: auto is a compiled loop on a CPU, else products of "
        "matrices; torch-compile needs a C++ compiler, triton a GPU. Results are the same.",
        choices=("auto", "products", "torch-compile", "triton"),
        advanced=True,
    )


@dataclass(frozen=True)
class ConnectomeSettings(Settings):
    """How many streamlines join each two regions, as a matrix (job ``connectome``)."""

    tracts: str = option("", "Streamlines that track wrote: .trx, .tck or .trk.", path=True)
    labels: str = option(
        "", "Regions: an image of their numbers in the scan's scanner space, in any grid; 0 is no region.", path=True
    )
    map: str = option(
        "",
        "Map to average along the streamlines; FA when not given, where their file holds it (not .tck).",
        path=True,
    )
    radius: float = option(
        4.0,
        "How far from a streamline's end to look for a region, where it lies in none; 0 does not look.",
        minimum=0,
        maximum=50,
        unit="mm",
    )
    out: str = option("", "Folder that the matrices go to; that of the streamlines when not given.", path=True)


@dataclass(frozen=True)
class ConvertSettings(ScanSettings):
    """The scan as NIfTI with bval and bvec, or as NRRD (job ``convert``)."""

    out: str = option("", "File to write: .nii.gz (with .bval and .bvec beside it), .nrrd or .nhdr.", path=True)


@dataclass(frozen=True)
class SimulateSettings(Settings):
    """A whole-brain scan with known truth (job ``simulate``)."""

    out: str = option("", "Folder that the scan and its truth go to.", path=True)
    shells: str = option(
        "1000:30",
        "b-value (100 to 9999 s/mm2) and directions (1 to 999) of each shell; 1000:30,2000:60 is two.",
        form=SHELLS,
    )
    n_b0: int = option(2, "b0 volumes.", minimum=1, maximum=64)
    snr: float = option(25.0, "Signal-to-noise ratio of white matter at b0.", minimum=1, maximum=1000)
    voxel_size: float = option(2.0, "Voxel edge.", minimum=1, maximum=5, unit="mm")
    noise_correlation: float = option(
        0.0,
        "Correlation of the noise of neighbouring voxels: interpolated scans have about 0.3.",
        minimum=0,
        maximum=0.5,
    )
    lesion: bool = option(True, "Put an oedema-like lesion into the patient's right frontal white matter.")
    seed: int = option(0, "Seed of everything random.", minimum=0, maximum=2**31 - 1)

    @property
    def protocol(self) -> tuple[tuple[float, int], ...]:
        """b-value, s/mm2, and number of directions of each shell."""
        pairs = (shell.split(":") for shell in self.shells.split(","))
        return tuple((float(bval), int(count)) for bval, count in pairs)


JOBS: dict[str, type[Settings]] = {
    "info": ScanSettings,
    "fit": FitSettings,
    "track": TrackSettings,
    "encode": EncodeSettings,
    "connectome": ConnectomeSettings,
    "convert": ConvertSettings,
    "simulate": SimulateSettings,
}
"""Settings of each job, by the job's name on the command line and in requests."""
