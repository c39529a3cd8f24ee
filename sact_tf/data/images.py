"""JPEG and PNG files, decoded and upright, with errors that name the file."""

from __future__ import annotations

import warnings

import numpy as np
import tensorflow as tf

from sact_tf.data.examples import DataError
from sact_tf.optional import lazy

pil_image = lazy("PIL.Image")

_HEAD = 2**17  # bytes in which a file's EXIF data begin
_ORIENTATION = 0x0112  # EXIF's tag
_MAX_ENTRIES = 512
_MIRRORED_ROWS = (3, 4, 7, 8)
_MIRRORED_COLUMNS = (2, 3, 6, 7)
_TRANSPOSED = (5, 6, 7, 8)


def decode_image(
    encoded: tf.Tensor, name: tf.Tensor, upright: bool = True
) -> tf.Tensor:
    """Decodes a JPEG or PNG image of any kind (grey, CMYK, with alpha, 16 bits) to RGB.

    Args:
        encoded: String [].
        name: String [], what an error calls the image.
        upright: Whether the image is turned as its EXIF data say. The original did not
            do so.

    Returns:
        uint8 [height, width, 3].

    Raises:
        tf.errors.InvalidArgumentError: Naming the image, if it is cut off or neither.
    """
    is_jpeg = _is_jpeg(encoded)
    is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
    # Cameras may leave anything behind the end of a JPEG image, such as a film.
    end = tf.where(is_jpeg, b"\xff\xd9", b"IEND")
    has_end = tf.size(tf.strings.split(encoded, end, maxsplit=1)) > 1
    checks = [
        tf.debugging.Assert(is_jpeg | is_png, [name, "is no JPEG or PNG image"]),
        tf.debugging.Assert(has_end, [name, "is cut off"]),
    ]
    with tf.control_dependencies([c for c in checks if c is not None]):
        encoded = tf.identity(encoded)
    image = tf.cond(
        is_jpeg,
        lambda: tf.io.decode_jpeg(encoded, channels=3),
        lambda: tf.io.decode_png(encoded, channels=3),
    )
    return _turn(image, orientation(encoded)) if upright else image


def read_image(path: str) -> tf.Tensor:
    """Reads a JPEG or PNG file with `decode_image`, outside of graphs.

    Raises:
        DataError: Naming the file, if it is missing, cut off, or no such image.
    """
    try:
        return decode_image(tf.io.read_file(path), tf.constant(path))
    except tf.errors.NotFoundError as error:
        raise DataError(f"{path}: does not exist") from error
    except tf.errors.OpError as error:
        is_cut_off = "is cut off" in error.message
        problem = "is cut off" if is_cut_off else "cannot be read as JPEG or PNG image"
        raise DataError(f"{path}: {problem}") from error


def image_size(path: str) -> tuple[int, int]:
    """Returns (height, width) of the upright image in a file, of which it reads little.

    Raises:
        DataError: Naming the file, if it is missing, or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and odd EXIF data
            with pil_image.open(path, formats=("JPEG", "PNG")) as image:
                width, height = image.size
                stored = image.info.get("exif", b"")
                exif = pil_image.Exif()
                exif.load(stored)
                is_transposed = exif.get(_ORIENTATION) in _TRANSPOSED
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist") from error
    except pil_image.DecompressionBombError as error:
        raise DataError(f"{path}: is too large an image ({error})") from error
    except Exception as error:  # whatever PIL's readers raise
        raise DataError(f"{path}: cannot be read as JPEG or PNG image") from error
    return (width, height) if is_transposed else (height, width)


def encoded_size(encoded: tf.Tensor) -> tuple[int, int]:
    """Returns (height, width) of an upright image, outside of graphs.

    Args:
        encoded: String [], a JPEG or PNG file.
    """
    if bool(_is_jpeg(encoded)):  # of which the header is enough
        height, width = tf.io.extract_jpeg_shape(encoded).numpy()[:2].tolist()
    else:
        height, width = tf.io.decode_png(encoded).shape[:2]
    is_transposed = int(orientation(encoded)) in _TRANSPOSED
    return (width, height) if is_transposed else (height, width)


def require_finite(images: np.ndarray | tf.Tensor, name: str) -> None:
    """Raises DataError where an image has NaN or infinite values.

    A network would hide them: a maximum over NaN may be any number.

    Args:
        images: Of any shape; integers are finite.
        name: What the error calls them.
    """
    values = np.asarray(images)
    if values.dtype.kind not in "biu" and not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise DataError(
            f"{name}: {count} of {values.size} values are NaN or infinite; all must be "
            "finite"
        )


def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of a JPEG or PNG file, int32 [].

    1 (upright) to 8; 1 where the first 128 kB of the file do not say.

    Args:
        encoded: String [].
    """
    head = tf.strings.substr(encoded, 0, _HEAD)
    is_jpeg = _is_jpeg(encoded)
    # A JPEG segment begins with its kind and length, a PNG chunk with length and kind.
    mark = tf.where(is_jpeg, b"Exif\x00\x00", b"eXIf")
    parts = tf.strings.split(head, mark, maxsplit=1)

    def parse():
        before, after = parts[0], parts[1]
        start = tf.maximum(tf.strings.length(before) - 4, 0)
        is_segment = tf.strings.substr(before, start, 2) == b"\xff\xe1"
        found = _tiff_orientation(tf.strings.substr(after, 0, 2**16))
        return tf.where(is_segment | ~is_jpeg, found, 1)

    return tf.cond(tf.size(parts) > 1, parse, lambda: tf.constant(1))


def _is_jpeg(encoded):
    return tf.strings.substr(encoded, 0, 2) == b"\xff\xd8"


def _tiff_orientation(content):
    """Finds the tag in the first directory of EXIF data, which are a TIFF file."""
    values = tf.cast(tf.io.decode_raw(content, tf.uint8), tf.int64)
    size = tf.size(values, tf.int64)
    values = tf.pad(values, [[0, 1]])  # what lies outside reads as zero
    is_little = tf.strings.substr(content, 0, 2) == b"II"

    def unsigned(places, count):
        exponents = tf.range(count, dtype=tf.int64)
        digits = tf.gather(values, tf.minimum(places[:, tf.newaxis] + exponents, size))
        digits = tf.where(is_little, digits[:, ::-1], digits)
        return tf.reduce_sum(digits * [256**k for k in reversed(range(count))], 1)

    is_tiff = is_little | (tf.strings.substr(content, 0, 2) == b"MM")
    is_tiff &= unsigned(tf.constant([2], tf.int64), 2)[0] == 42
    directory = unsigned(tf.constant([4], tf.int64), 4)
    count = tf.minimum(unsigned(directory, 2)[0], _MAX_ENTRIES)
    entries = directory + 2 + 12 * tf.range(count)
    tagged = tf.boolean_mask(entries, unsigned(entries, 2) == _ORIENTATION)
    found = unsigned(tagged[:1] + 8, 2)
    found = tf.reduce_max(tf.concat([found, tf.zeros([1], tf.int64)], 0))
    is_known = is_tiff & (found >= 1) & (found <= 8)
    return tf.cast(tf.where(is_known, found, 1), tf.int32)


def _turn(image, how):
    """Turns an image [height, width, 3] upright, from one of the eight orientations."""

    def among(kinds):
        return tf.reduce_any(how == list(kinds))

    def turned():
        upright = tf.cond(
            among(_TRANSPOSED),
            lambda: tf.transpose(image, [1, 0, 2]),
            lambda: tf.identity(image),
        )
        upright = tf.where(among(_MIRRORED_ROWS), upright[::-1], upright)
        return tf.where(among(_MIRRORED_COLUMNS), upright[:, ::-1], upright)

    image = tf.cond(how == 1, lambda: tf.identity(image), turned)
    return tf.ensure_shape(image, [None, None, 3])
