"""Images in NRRD, attached (.nrrd) or detached (.nhdr), with the DWMRI keys of diffusion scans.

The format is that of teem's "Definition of NRRD File Format"; the keys are those of the NA-MIC DWI convention.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from DiffusionFMLib.errors import GradientError, InputError
from DiffusionFMLib.events import Report
from DiffusionFMLib.gradients import SPACE_TO_RAS, GradientTable
from DiffusionFMLib.io.compressed import drain, opened
from DiffusionFMLib.io.images import READING, ImageFile

NRRD_MAGIC: Final = b"NRRD"

_MAX_HEADER = 1 << 22

_SPACES = {"ras": "right-anterior-superior", "las": "left-anterior-superior", "lps": "left-posterior-superior"}

_TYPES = {
    "i1": ("int8", "int8_t", "signed char"),
    "u1": ("uint8", "uint8_t", "uchar", "unsigned char"),
    "i2": ("int16", "int16_t", "short", "short int", "signed short", "signed short int"),
    "u2": ("uint16", "uint16_t", "ushort", "unsigned short", "unsigned short int"),
    "i4": ("int32", "int32_t", "int", "signed int"),
    "u4": ("uint32", "uint32_t", "uint", "unsigned int"),
    "i8": ("int64", "int64_t", "longlong", "long long", "long long int"),
    "u8": ("uint64", "uint64_t", "ulonglong", "unsigned long long", "unsigned long long int"),
    "f4": ("float",),
    "f8": ("double",),
}
_KINDS = {name: kind for kind, names in _TYPES.items() for name in names}

_MAX_FILES = 1 << 16

_NUMBERED = re.compile(r"([^%]*)%0?(\d?)d(\S*)\s+(\d+)\s+(\d+)\s+(-?\d+)(?:\s+\d+)?")
"""A numbered series of data files, as ``volume%03d.raw 0 30 1``."""

_VECTORS = re.compile(r"none|\([^)]*\)")


class NrrdFile(ImageFile):
    """An NRRD image; see `ImageFile`. The axis without a direction in space is that of the volumes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._fields, self._keys, self._offset = _read_header(path)
        self._sizes = tuple(self._integers("sizes"))
        kind = _KINDS.get(self._field("type").lower())
        self._encoding = self._field("encoding").lower()
        if kind is None or self._encoding not in ("raw", "gz", "gzip"):
            msg = f"{path.name} has type '{self._field('type')}' and encoding '{self._encoding}', which cannot be read."
            raise InputError(msg, "Save it again with numbers as the type and raw or gzip as the encoding.")
        order = ">" if self._fields.get("endian", "little").lower() == "big" else "<"
        self._dtype = np.dtype(order + kind)
        self._read_space()

    def gradients(self, b0_threshold: float) -> GradientTable | None:
        """See `ImageFile.gradients`.

        A gradient shorter than the longest one stands for a lower b-value: b scales with its squared length.
        """
        nominal = self._keys.get("DWMRI_b-value")
        if nominal is None:
            return None
        vectors = self._gradient_vectors()
        try:
            top = float(nominal)
        except ValueError as error:
            msg = f"{self.path.name} has DWMRI_b-value '{nominal}'; expected a number."
            raise GradientError(msg, "Correct the header.") from error
        length = np.linalg.norm(vectors, axis=1)
        if not np.isfinite(length).all() or not length.any():
            msg = f"{self.path.name} has no usable diffusion gradient: all are zero or not finite."
            raise GradientError(msg, "Correct the header, or convert the scan again.")
        relative = length / length.max()
        # headers hold six digits: what is equal but for rounding is the nominal b-value
        relative[np.abs(relative - 1) < 1e-4] = 1.0
        unit = np.divide(vectors, length[:, None], out=np.zeros_like(vectors), where=length[:, None] > 0)
        try:
            return GradientTable.from_nrrd(top * relative**2, unit, self._frame(), self._space, b0_threshold)
        except GradientError as error:
            msg = f"{self.path.name}: {error.message}"
            raise GradientError(msg, error.hint) from error

    def _values(self, report: Report, volumes: Sequence[int] | None, mapped: bool) -> NDArray[np.float32]:
        """Slab by slab along the file's slowest axis."""
        sizes, last, axis = self._sizes, self._sizes[-1], self._volume_axis
        shape = list(sizes)
        inside: tuple[Any, ...] = ()
        place = {slab: slab for slab in range(last)}
        if volumes is not None and axis is not None:
            shape[axis] = len(volumes)
            if axis == len(sizes) - 1:
                place = {slab: i for i, slab in enumerate(volumes)}
            else:
                inside = (*[slice(None)] * axis, list(volumes))
        out = np.empty(shape, np.float32, order="F")
        count = math.prod(sizes[:-1]) * self._dtype.itemsize
        with self._content() as files:
            file = next(files, None)
            for slab in range(last):
                report.progress(slab, last, READING)
                data = file.read(count) if file is not None else b""
                if not data:
                    file = next(files, None)
                    data = file.read(count) if file is not None else b""
                if len(data) < count:
                    msg = f"{self.path.name} ends within slab {slab} of {last}: its data are cut short."
                    raise InputError(msg, "Copy or download the file again.")
                if slab in place:
                    with np.errstate(over="ignore"):
                        out[..., place[slab]] = np.frombuffer(data, self._dtype).reshape(sizes[:-1], order="F")[inside]
            if file is not None and self._encoding != "raw":
                drain(file)
        return out if axis is None else np.moveaxis(out, axis, -1)

    @contextmanager
    def _content(self) -> Iterator[Iterator[BinaryIO]]:
        """The data files one after the other, each opened behind what is to be skipped."""
        gzipped = self._encoding != "raw"
        skip, lines = (sum(self._integers(name, "0")) for name in ("byte skip", "line skip"))
        sources = self._data_files()
        with ExitStack() as stack:

            def files() -> Iterator[BinaryIO]:
                for path in sources:
                    offset = self._offset if path == self.path else 0
                    if lines:
                        offset = stack.enter_context(_after_lines(path, offset, lines))
                    if skip == -1 and not gzipped:
                        offset = path.stat().st_size - math.prod(self._sizes) * self._dtype.itemsize // len(sources)
                    file = stack.enter_context(opened(path, max(offset, 0), gzipped))
                    file.read(max(skip, 0))
                    yield file

            yield files()

    @property
    def files(self) -> list[Path]:
        """See `ImageFile.files`."""
        return [self.path, *self._data_files()]

    def _data_files(self) -> list[Path]:
        named = self._fields.get("data file", self._fields.get("datafile"))
        if named is None:
            return [self.path]
        folder = self.path.parent
        if named.startswith("LIST"):
            return [folder / name for name in self._fields.get("data list", "").splitlines() if name.strip()]
        numbered = _NUMBERED.fullmatch(named)
        if numbered is None:
            return [folder / named]
        before, width, after, *limits = numbered.groups()
        low, high, step = (int(limit) for limit in limits)
        numbers = range(low, high + (1 if step > 0 else -1), step or 1)
        return [folder / f"{before}{i:0{int(width or 0)}d}{after}" for i in numbers[:_MAX_FILES]]

    def _read_space(self) -> None:
        name, sizes = self.path.name, self._sizes
        space = self._field("space").lower()
        self._space = _SPACES.get(space, space)
        directions = _VECTORS.findall(self._field("space directions"))
        if self._space not in SPACE_TO_RAS:
            msg = f"{name} has space '{space}'; expected one of {', '.join(SPACE_TO_RAS)}."
            raise InputError(msg, "Save it again with an anatomical space.")
        spatial = [axis for axis, vector in enumerate(directions) if vector != "none"]
        if len(directions) != len(sizes) or len(spatial) != 3 or len(sizes) - len(spatial) > 1:
            msg = f"{name} has sizes {sizes} and {len(spatial)} directions in space; expected three."
            raise InputError(msg, "Choose a diffusion series or a 3-D image.")
        others = [axis for axis in range(len(sizes)) if axis not in spatial]
        self._volume_axis = others[0] if others else None
        self.shape = tuple(sizes[axis] for axis in [*spatial, *others])
        self._check_shape()
        columns = [self._vector(directions[axis]) for axis in spatial]
        origin = self._vector(self._fields.get("space origin", "(0,0,0)"))
        to_ras = np.diag([*SPACE_TO_RAS[self._space], 1.0])
        self.affine = to_ras @ np.block([[np.column_stack([*columns, origin])], [np.array([0.0, 0, 0, 1])]])

    def _frame(self) -> NDArray[np.float64]:
        """The measurement frame, its vectors as columns; the space itself when the header has none."""
        text = self._fields.get("measurement frame")
        if text is None:
            self.notes.append("The header has no measurement frame; gradients were taken as given in its space.")
            return np.eye(3)
        vectors = [self._vector(vector) for vector in _VECTORS.findall(text) if vector != "none"]
        if len(vectors) != 3:
            msg = f"{self.path.name} has measurement frame '{text}'; expected three vectors."
            raise GradientError(msg, "Correct the header.")
        return np.column_stack(vectors)

    def _gradient_vectors(self) -> NDArray[np.float64]:
        """One gradient per volume, shape (N, 3); DWMRI_NEX repeats the one before it."""
        vectors: list[NDArray[np.float64]] = []
        while len(vectors) < self.n_volumes:
            key = f"DWMRI_gradient_{len(vectors):04d}"
            text = self._keys.get(key)
            if text is None:
                given = sum(name.startswith("DWMRI_gradient_") for name in self._keys)
                msg = f"{self.path.name} has {given} gradients but {self.n_volumes} volumes: {key} is missing."
                raise GradientError(msg, "Check that the b0 rows were kept, or convert the scan again.")
            repeats = self._keys.get(f"DWMRI_NEX_{len(vectors):04d}", "1")
            try:
                vector = np.array([float(word) for word in text.split()])
                count = int(repeats)
            except ValueError as error:
                msg = f"{self.path.name} has {key} '{text}' (repeated {repeats}); expected three numbers."
                raise GradientError(msg, "Correct the header.") from error
            if vector.shape != (3,) or count < 1:
                msg = f"{self.path.name} has {key} '{text}' (repeated {repeats}); expected three numbers."
                raise GradientError(msg, "Correct the header.")
            vectors += [vector] * count
        if f"DWMRI_gradient_{self.n_volumes:04d}" in self._keys or len(vectors) > self.n_volumes:
            msg = f"{self.path.name} has more gradients than its {self.n_volumes} volumes."
            raise GradientError(msg, "Correct the header, or convert the scan again.")
        return np.array(vectors)

    def _field(self, name: str) -> str:
        if name not in self._fields:
            msg = f"{self.path.name} has no field '{name}' in its NRRD header."
            raise InputError(msg, "Save the image again, from Slicer or with a current converter.")
        return self._fields[name]

    def _integers(self, name: str, default: str | None = None) -> list[int]:
        text = self._field(name) if default is None else self._fields.get(name, default)
        try:
            return [int(word) for word in text.split()]
        except ValueError as error:
            msg = f"{self.path.name} has {name} '{text}'; expected whole numbers."
            raise InputError(msg, "Save the image again.") from error

    def _vector(self, text: str) -> NDArray[np.float64]:
        try:
            vector = np.array([float(word) for word in text.strip(" ()").split(",")])
        except ValueError:
            vector = np.empty(0)
        if vector.shape != (3,):
            msg = f"{self.path.name} has the vector '{text}' in its header; expected three numbers."
            raise InputError(msg, "Save the image again.")
        return vector


@contextmanager
def _after_lines(path: Path, offset: int, lines: int) -> Iterator[int]:
    """Position behind so many lines."""
    with opened(path, offset, gzipped=False) as file:
        for _ in range(lines):
            file.readline()
        yield file.tell()


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, str], int]:
    """Fields (names in lower case), keys, and where the data start."""
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    with opened(path) as file:
        text = ""
        for raw in iter(file.readline, b""):
            text = raw.decode("utf-8", errors="replace").rstrip("\r\n")
            if not text:
                break
            if file.tell() > _MAX_HEADER or "\0" in text:
                msg = f"{path.name} has a broken NRRD header: it holds binary data, or no end."
                raise InputError(msg, "Copy or download the file again.")
            if text.startswith("#"):
                continue
            if fields.get("data file", fields.get("datafile", "")).startswith("LIST"):
                fields["data list"] = f"{fields.get('data list', '')}{text}\n"
            elif ":=" in text and ": " not in text.partition(":=")[0]:
                key, _, value = text.partition(":=")
                keys[key] = value.strip()
            else:
                name, _, value = text.partition(":")
                fields[name.strip().lower()] = value.strip()
        return fields, keys, file.tell()
