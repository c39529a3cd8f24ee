"""The files of the zoo: weights in half precision, and a card, in one `.npz` archive.

Arrays have the names of TF-Slim checkpoints. Kernels are float16; arrays of one axis
(biases, and batch normalization, whose variances may leave the range of float16) stay
float32. `card` is an array of bytes, JSON in UTF-8. Nothing in a file can run code.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping

import numpy as np

from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.writing import write_bytes

FORMAT = 1
"""Of files written here; rises when what they hold changes its meaning."""

MAX_CARD = 2**20
"""Most bytes of a card."""

_CARD = "card"
_HALF = np.finfo(np.float16)


def half(tensor: np.ndarray) -> np.ndarray:
    """Returns an array as files hold it: float16 if it is a kernel that fits.

    >>> half(np.ones([3, 3, 1, 1], np.float32)).dtype, half(np.ones(4)).dtype
    (dtype('float16'), dtype('float32'))
    """
    tensor = np.asarray(tensor, np.float32)
    if tensor.ndim < 2 or not np.abs(tensor).max(initial=0) <= float(_HALF.max):
        return tensor
    return tensor.astype(np.float16)


def rounded(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns float32 arrays as they come back from a file."""
    return {name: half(tensor).astype(np.float32) for name, tensor in tensors.items()}


def write(
    path: str, card: Mapping[str, object], tensors: Mapping[str, np.ndarray]
) -> int:
    """Writes a file, whole or not at all; the same content gives the same bytes.

    Args:
        path: To write.
        card: What JSON can hold.
        tensors: Float arrays by their names in checkpoints.

    Returns:
        Its size in bytes.

    Raises:
        ValueError: A weight is not finite.
        WritingError: It cannot be written.
    """
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite; it holds NaN or infinity")
    text = json.dumps({"format": FORMAT, **card}, sort_keys=True, allow_nan=False)
    arrays = {name: half(tensors[name]) for name in sorted(tensors)}
    content = io.BytesIO()
    np.savez_compressed(
        content, **{_CARD: np.frombuffer(text.encode(), np.uint8)}, **arrays
    )
    write_bytes(path, content.getvalue())
    return content.tell()


def read_card(path: str) -> dict[str, object]:
    """Reads the card alone.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is no file of the zoo, or of a later format.
    """
    return _card(path, _read(path, [_CARD]))


def read(path: str) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Reads card and weights.

    Returns:
        The card, and float32 arrays by their names in checkpoints.

    Raises:
        FileNotFoundError, DataError: As of `read_card`; or weights are none.
    """
    arrays = _read(path)
    card = _card(path, arrays)
    tensors = {name: array for name, array in arrays.items() if name != _CARD}
    for name, tensor in tensors.items():
        if tensor.dtype not in (np.float16, np.float32):
            raise DataError(
                f"{path}: {name} must be float16 or float32; got {tensor.dtype}"
            )
        if not np.isfinite(tensor).all():
            raise DataError(f"{path}: {name} holds NaN or infinity")
    return card, {name: t.astype(np.float32) for name, t in tensors.items()}


def _read(path, names=None):
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: does not exist")
    return reading.read_npz(path, names)


def _card(path, arrays):
    content = arrays.get(_CARD)
    if content is None or content.dtype != np.uint8 or content.ndim != 1:
        raise DataError(f"{path}: is no network of the zoo: it has no card")
    if content.size > MAX_CARD:
        raise DataError(f"{path}: has a card of {content.size} bytes; at most 2**20")
    try:
        card = json.loads(content.tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: has a card that is no JSON ({error})") from error
    fields = {"format": reading.number(), "name": reading.text()}
    card = reading.checked_row(card, fields, f"{path}: the card")
    if card["format"] != FORMAT:
        raise DataError(
            f"{path}: is of format {card['format']}; this version reads {FORMAT}"
        )
    return card
