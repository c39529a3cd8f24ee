"""Reads JSON, `.npz` and HDF5 files, and checks what they claim.

A file from elsewhere may hold anything: every error names file, row and field, what
stands there and what is accepted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from sact_tf.data.examples import DataError
from sact_tf.domains import FINITE, Domain, brief

_REQUIRED = object()
_MOST_DENSE = 1100  # bytes from one compressed one, by the methods of these formats


@dataclasses.dataclass(frozen=True)
class Field:
    """A named value in a file.

    Attributes:
        convert: Returns the value in its usual form; ValueError on all others.
        expected: What is accepted, in words.
        default: What absent and null mean; without one they are errors.
    """

    convert: Callable[[object], object]
    expected: str
    default: object = _REQUIRED


def number(domain: Domain = FINITE, default: object = _REQUIRED) -> Field:
    """A number of a domain."""
    return Field(domain.convert, str(domain), default)


def numbers(count: int, what: str, domain: Domain = FINITE) -> Field:
    """A list of so many numbers of a domain.

    Args:
        count: How many.
        what: What they are, in words.
        domain: Of each.
    """

    def convert(value):
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if not isinstance(value, (list, tuple)) or len(value) != count:
            raise ValueError(value)
        return [domain.convert(v) for v in value]

    return Field(convert, f"{what}: {count} numbers, each {domain}")


def text() -> Field:
    """A string."""

    def convert(value):
        if not isinstance(value, str):
            raise ValueError(value)
        return str(value)

    return Field(convert, "a string")


_INTEGER = Domain(is_integer=True)


def identity() -> Field:
    """What tells rows apart: an integer or a string."""

    def convert(value):
        return str(value) if isinstance(value, str) else _INTEGER.convert(value)

    return Field(convert, "an integer within 64 bits or a string")


def truth() -> Field:
    """Yes or no, as files write it; absent and null are no."""

    def convert(value):
        if isinstance(value, (bool, np.bool_)):
            return int(value)
        if isinstance(value, str):
            value = float(value)
        if value not in (0, 1):
            raise ValueError(value)
        return int(value)

    return Field(convert, '0, 1, true, false, null, "0" or "1"', 0)


def checked_row(row: object, fields: Mapping[str, Field], where: str) -> dict:
    """Returns a row with its fields in their usual form; further ones are kept.

    Args:
        row: What the file holds.
        fields: By name.
        where: What an error calls the row.

    Raises:
        DataError: The row is no mapping, or a field is missing or something else.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {brief(row)}, which has no {next(iter(fields))!r}")
    result = dict(row)
    for name, field in fields.items():
        value = row.get(name)
        if value is None and field.default is not _REQUIRED:
            result[name] = field.default
            continue
        if name not in row:
            raise DataError(f"{where} has no {name!r}")
        try:
            result[name] = field.convert(value)
        except (ValueError, TypeError, OverflowError):
            raise DataError(
                f"{where} has {name} {brief(value)}; expected {field.expected}"
            ) from None
    return result


def checked_rows(rows: object, fields: Mapping[str, Field], where: str) -> list[dict]:
    """Returns `checked_row` of every row of a list; others are errors."""
    if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
        raise DataError(f"{where} is {brief(rows)}; expected a list")
    return [checked_row(row, fields, f"{where}[{k}]") for k, row in enumerate(rows)]


def read_json(path: str) -> object:
    """Reads a JSON file, which may begin with a byte order mark.

    Raises:
        FileNotFoundError: There is none.
        DataError: It cannot be read, or is no JSON.
    """
    path = os.path.expanduser(os.fspath(path))
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: No such file or directory") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise DataError(f"{path}: is no JSON file (nested too deeply)") from error
    except ValueError as error:
        raise DataError(f"{path}: is no JSON file ({error})") from error


def read_npz(path: str, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz` file; object arrays, which could run code, are refused.

    Args:
        path: The file.
        names: Arrays to read, where the file has them; None: all.

    Raises:
        DataError: It is no such file, or claims more than it can hold.
    """
    wanted = None if names is None else set(names)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {
                member.filename.removesuffix(".npy"): member
                for member in archive.infolist()
            }
            return {
                name: _read_member(archive, member)
                for name, member in members.items()
                if wanted is None or name in wanted
            }
    except Exception as error:  # whatever zip and array readers raise
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: is no readable .npz file ({reason})") from error


def _read_member(archive, member):
    """Reads an array once its size is known to be no lie, which would take memory."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise ValueError(f"{member.filename} has array format {version}")
        shape, _, dtype = read_header(file)
        size = dtype.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        possible = member.file_size - file.tell()
        possible = min(possible, _MOST_DENSE * (member.compress_size + 1))
        if size > possible:
            raise ValueError(
                f"{member.filename} claims {size} bytes and has at most {possible}"
            )
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def read_hdf5(path: str, fields: Mapping[str, tuple[int, str]]) -> dict:
    """Reads arrays of an HDF5 file.

    Args:
        path: The file.
        fields: Number of axes, and accepted kinds of NumPy's types, by the array's
            name.

    Raises:
        FileNotFoundError: There is none.
        DataError: It is no HDF5 file, or lacks one of them, or claims more than it
            can hold.
    """
    import h5py  # not needed by most

    path = os.path.expanduser(os.fspath(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: does not exist")
    try:
        with h5py.File(path, "r") as file:
            return {
                name: _read_dataset(file, name, rank, kinds)
                for name, (rank, kinds) in fields.items()
            }
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        reason = str(error).strip("'\"")
        raise DataError(f"{path}: is no HDF5 file of this kind ({reason})") from error


def check_member(member: zipfile.ZipInfo) -> None:
    """Raises ValueError if a member of an archive cannot be as large as it claims."""
    possible = _MOST_DENSE * (member.compress_size + 1)
    if member.file_size > possible:
        raise ValueError(
            f"{member.filename} claims {member.file_size} bytes and has at most "
            f"{possible}"
        )


def check_hdf5(group) -> None:
    """Checks that an HDF5 file holds groups and arrays, and no more than there is.

    Args:
        group: `h5py.File` or group.

    Raises:
        ValueError: It leads to other files or elsewhere, or an array claims more bytes
            than it can have.
    """
    import h5py

    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name}/{name} leads elsewhere")
        entry = group[name]
        if isinstance(entry, h5py.Group):
            check_hdf5(entry)
        elif isinstance(entry, h5py.Dataset):
            check_dataset(entry)


def check_dataset(dataset) -> None:
    """Raises ValueError if an HDF5 array claims more bytes than the file can hold."""
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name} leads to other files")
    stored = dataset.id.get_storage_size()
    if dataset.nbytes > _MOST_DENSE * stored:
        raise ValueError(
            f"{dataset.name} claims {dataset.nbytes} bytes and has {stored}"
        )


def _read_dataset(file, name, rank, kinds):
    import h5py

    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"has no array {name!r}; it has {brief(list(file))}")
    if dataset.ndim != rank or dataset.dtype.kind not in kinds:
        raise ValueError(
            f"{name} must be numbers with {rank} axes; got {dataset.dtype} "
            f"{list(dataset.shape)}"
        )
    check_dataset(dataset)
    return dataset[()]
