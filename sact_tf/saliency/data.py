"""Recorded fixations of three kinds of files."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.data.images import read_image
from sact_tf.domains import MAX_SIDE
from sact_tf.optional import lazy
from sact_tf.saliency import maps

scipy_io = lazy("scipy.io")

HALVES = ("tune", "validate")
"""The first half of the images chooses blur and blend, the second is scored."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_PIXELS = 2**28
_KEYS = ("image", "xy", "offset", "original_size")
# A binary map that went through JPEG is no longer binary.
_FIXATED = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Stimulus:
    """An image and where people looked at it.

    Attributes:
        name: Unique in the data set, without the file's suffix.
        image_path: JPEG or PNG file, of this size or smaller or larger.
        size: (height, width) that fixations refer to, in pixels.
        fixations: float64 [n, 2], x to the right and y down, n >= 1, all inside.
        half: One of `HALVES`.
        subjects: int64 [n], who looked, or None.
        human_path: File of the human map that the data set comes with, or None.
    """

    name: str
    image_path: str
    size: tuple[int, int]
    fixations: np.ndarray
    half: str
    subjects: np.ndarray | None = None
    human_path: str | None = None

    def fixation_map(self) -> np.ndarray:
        """Returns the fixated pixels, bool [height, width]."""
        return maps.fixation_map(self.fixations, *self.size)

    def human_map(self, sigma: float | None = None) -> np.ndarray:
        """Returns the density of fixations, float64 [height, width].

        It is that of the data set, if that has one, or the fixations blurred.

        Args:
            sigma: Of the blur in pixels; None: as the MIT benchmark does.

        Raises:
            DataError: The data set's file cannot be read or has another size.
        """
        if self.human_path is None:
            return maps.human_map(self.fixation_map(), sigma)
        values = read_image(self.human_path).numpy().mean(-1)
        if values.shape != self.size:
            raise DataError(
                f"{self.human_path}: is {values.shape[1]}x{values.shape[0]}, but the "
                f"fixations of {self.name} are of {self.size[1]}x{self.size[0]}"
            )
        return values


@dataclasses.dataclass(frozen=True)
class FixationData:
    """A data set of fixations.

    Attributes:
        stimuli: Images that have fixations, in order.
        num_outside: Fixations outside of their images (or NaN), which were dropped.
        skipped: Names of images without fixations, which were skipped.
    """

    stimuli: Sequence[Stimulus]
    num_outside: int
    skipped: Sequence[str]

    @property
    def has_subjects(self) -> bool:
        """Whether it is known who looked."""
        return all(stimulus.subjects is not None for stimulus in self.stimuli)

    def half(self, name: str) -> list[Stimulus]:
        """Returns the images of one of `HALVES`."""
        return [stimulus for stimulus in self.stimuli if stimulus.half == name]


def load_cat2000(directory: str) -> FixationData:
    """Reads the training set of CAT2000 (Borji and Itti, 2015).

    The first half of every category's images is for tuning, as in the SACT paper.

    Args:
        directory: Holds `Stimuli/<category>/*.jpg`, `FIXATIONLOCS/<category>/*.mat` and
            perhaps `FIXATIONMAPS/<category>/*.jpg`, or a folder `trainSet` that does.

    Raises:
        DataError: A file is missing or cannot be read, or a half has no fixations.
    """
    root = _existing_directory(directory)
    root = root / "trainSet" if (root / "trainSet").is_dir() else root
    categories = sorted(
        path
        for path in _subdirectory(root, "Stimuli").iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    _subdirectory(root, "FIXATIONLOCS")
    if not categories:
        raise DataError(f"{root / 'Stimuli'}: holds no directories, one per category")
    made = []
    for category in categories:
        files = _image_files(category)
        for k, file in enumerate(files):
            located = root / "FIXATIONLOCS" / category.name / f"{file.stem}.mat"
            human = root / "FIXATIONMAPS" / category.name / file.name
            name = f"{category.name}/{file.stem}"
            pixels = _read_fixation_locations(located)
            made.append(_from_pixels(name, file, pixels, human, k, len(files)))
    return _checked(made, str(root))


def load_mit1003(directory: str) -> FixationData:
    """Reads a data set in the folders of MIT1003 (Judd et al., 2009).

    The first half of the images by name is for tuning.

    Args:
        directory: Holds `ALLSTIMULI/<name>.jpeg` and
            `ALLFIXATIONMAPS/<name>_fixPts.jpg`, fixated pixels white, and perhaps
            `<name>_fixMap.jpg`.

    Raises:
        DataError: A file is missing or cannot be read, or a half has no fixations.
    """
    root = _existing_directory(directory)
    files = _image_files(_subdirectory(root, "ALLSTIMULI"))
    located = _subdirectory(root, "ALLFIXATIONMAPS")
    made = []
    for k, file in enumerate(files):
        pixels = read_image(str(located / f"{file.stem}_fixPts.jpg")).numpy()[..., 0]
        human = located / f"{file.stem}_fixMap.jpg"
        made.append(
            _from_pixels(file.stem, file, pixels >= _FIXATED, human, k, len(files))
        )
    return _checked(made, str(root))


def load_npz(path: str) -> FixationData:
    """Reads fixations of an `.npz` file.

    It holds `image` (names of files in the folder `images` beside it, or beside it
    themselves), `xy` [fixations, 2] in original pixels (x to the right, y down),
    `offset` [images + 1] (image i has fixations offset[i] to offset[i + 1]) and
    `original_size` (width, height; [2] or [images, 2]), and perhaps `subject`
    [fixations], integers. The first half of the images is for tuning.

    Args:
        path: The file, or the directory of a file `fixations.npz`.

    Raises:
        DataError: A file or array is missing or cannot be read, arrays disagree, or a
            half has no fixations.
    """
    file = pathlib.Path(path).expanduser()
    file = file / "fixations.npz" if file.is_dir() else file
    if not file.is_file():
        raise DataError(f"{file}: does not exist")
    arrays = _read_npz(file)
    names, xy, offset = (arrays[key] for key in ("image", "xy", "offset"))
    subject = arrays.get("subject")
    sizes = np.broadcast_to(arrays["original_size"], [len(names), 2])
    folder = file.parent / "images"
    folder = folder if folder.is_dir() else file.parent
    made = []
    for k, name in enumerate(names.astype(str)):
        image = folder / name
        if not image.is_file():
            raise DataError(f"{image}: does not exist; {file} names it")
        part = slice(offset[k], offset[k + 1])
        width, height = map(int, sizes[k])
        made.append(
            Stimulus(
                os.path.splitext(name)[0],
                str(image),
                (height, width),
                xy[part].astype(np.float64),
                _half(k, len(names)),
                None if subject is None else subject[part].astype(np.int64),
            )
        )
    return _checked(made, str(file))


def _read_npz(file):
    """Reads and checks the arrays; object arrays, which could run code, are refused."""
    arrays = reading.read_npz(file, (*_KEYS, "subject"))
    for key in _KEYS:
        if key not in arrays:
            raise DataError(
                f"{file}: has no array {key!r}; needed are {', '.join(_KEYS)}"
            )
    names, xy, offset, sizes = (arrays[key] for key in _KEYS)
    count = len(names) if names.ndim == 1 else 0

    def check(good, key, wanted):
        if not good:
            shape, kind = list(arrays[key].shape), arrays[key].dtype
            raise DataError(f"{file}: {key} must be {wanted}; got {kind} {shape}")

    check(count and names.dtype.kind in "US", "image", "names [images]")
    check(
        xy.ndim == 2 and xy.shape[1] == 2 and xy.dtype.kind in "iuf",
        "xy",
        "numbers [fixations, 2]",
    )
    check(
        offset.shape == (count + 1,)
        and offset.dtype.kind in "iu"
        and offset[0] == 0
        and offset[-1] == len(xy)
        and (np.diff(offset.astype(np.int64)) >= 0).all(),
        "offset",
        f"integers [{count + 1}] that rise from 0 to the {len(xy)} fixations",
    )
    check(
        sizes.shape in ((2,), (count, 2))
        and sizes.dtype.kind in "iuf"
        and ((sizes >= 1) & (sizes <= MAX_SIDE)).all(),
        "original_size",
        f"numbers >= 1 [2] or [images, 2], at most {MAX_SIDE}",
    )
    if "subject" in arrays:
        subject = arrays["subject"]
        check(
            subject.shape == (len(xy),) and subject.dtype.kind in "iu",
            "subject",
            f"integers [{len(xy)}]",
        )
    return arrays


def _read_fixation_locations(file):
    if not file.is_file():
        raise DataError(f"{file}: does not exist")
    try:
        pixels = _variable(scipy_io.loadmat(file), file)
    except DataError:
        raise
    except Exception as error:  # a dozen kinds, by where the file is damaged
        raise DataError(
            f"{file}: is no readable MATLAB file ({error or type(error).__name__})"
        ) from error
    if not np.isfinite(pixels).all():
        raise DataError(f"{file}: fixLocs must be finite; it holds NaN or infinity")
    return pixels > 0


def _variable(stored, file):
    """Returns the matrix of fixations, checked before a sparse one takes its space."""
    if "fixLocs" not in stored:
        found = ", ".join(key for key in stored if not key.startswith("__")) or "none"
        raise DataError(f"{file}: has no variable fixLocs; its variables: {found}")
    pixels = stored["fixLocs"]
    is_sparse = hasattr(pixels, "toarray")
    pixels = pixels if is_sparse else np.asarray(pixels)
    is_matrix = len(pixels.shape) == 2 and 1 <= min(pixels.shape)
    if (
        not is_matrix
        or max(pixels.shape) > MAX_SIDE
        or np.prod(pixels.shape) > _MAX_PIXELS
        or pixels.dtype.kind not in "buif"
    ):
        raise DataError(
            f"{file}: fixLocs must be a matrix [height, width] of numbers, of at most "
            f"{_MAX_PIXELS} pixels; got {pixels.dtype} {list(pixels.shape)}"
        )
    return pixels.toarray() if is_sparse else pixels


def _from_pixels(name, file, pixels, human, k, count):
    rows, columns = np.nonzero(pixels)
    return Stimulus(
        name,
        str(file),
        pixels.shape,
        np.stack([columns, rows], 1).astype(np.float64),
        _half(k, count),
        human_path=str(human) if human.is_file() else None,
    )


def _half(k: int, count: int) -> str:
    return HALVES[0] if k < count // 2 else HALVES[1]


def _checked(made: Sequence[Stimulus], source: str) -> FixationData:
    """Drops fixations outside and images without any; checks that much is left."""
    names = [stimulus.name for stimulus in made]
    if len(set(names)) < len(names):
        raise DataError(
            f"{source}: several images are named {max(names, key=names.count)}"
        )
    kept, skipped, num_outside = [], [], 0
    for stimulus in made:
        height, width = stimulus.size
        x, y = stimulus.fixations.T
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        num_outside += int((~inside).sum())
        if not inside.any():
            skipped.append(stimulus.name)
            continue
        subjects = stimulus.subjects
        kept.append(
            dataclasses.replace(
                stimulus,
                fixations=stimulus.fixations[inside],
                subjects=None if subjects is None else subjects[inside],
            )
        )
    data = FixationData(kept, num_outside, skipped)
    for half in HALVES:
        if not data.half(half):
            raise DataError(
                f"{source}: no image of the half to {half} has a fixation inside "
                f"({len(made)} images, {num_outside} fixations outside)"
            )
    return data


def _existing_directory(directory):
    root = pathlib.Path(directory).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: is no directory")
    return root


def _subdirectory(root, name):
    if not (root / name).is_dir():
        raise DataError(f"{root}: has no directory {name}")
    return root / name


def _image_files(directory):
    files = [
        file
        for file in directory.iterdir()
        if file.suffix.lower() in _IMAGE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise DataError(f"{directory}: holds no JPEG or PNG images")
    return sorted(files)
