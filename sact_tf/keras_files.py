"""Networks in Keras' own files, `.keras` and `.weights.h5`.

A Keras file can hold code, and Keras takes more for a model than `.keras` archives:
HDF5 files and SavedModels, where its safe mode does not look. Here a file is read only
if it is an archive that holds a network of this project, by its name and plain options,
and arrays.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile

import h5py
import tensorflow as tf
import tf_keras as keras
from tf_keras.src.saving import serialization_lib

from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.domains import MAX_UNITS, brief, first_line, has_too_many_units
from sact_tf.writing import atomic_file, naming, write_bytes

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MEMBERS = (_CONFIG, "metadata.json", _WEIGHTS)
_PACKAGE = "sact_tf>"
_SCOPES = "slim_scopes"  # a network's property, where Keras finds its layers
# What Keras' readers raise on files of another layout.
_LAYOUT_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RuntimeError,
)


def load_network(path: str) -> keras.Model:
    """Loads a network of this package from a `.keras` archive; runs no code of it.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is no `.keras` archive, or holds anything but a network of this
            package and its weights.
    """
    path = _file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            missing = [name for name in _MEMBERS if name not in members]
            if missing:
                raise DataError(f"{path}: is no .keras archive: it has no {missing[0]}")
            for info in members.values():
                reading.check_member(info)
            config = json.loads(archive.read(_CONFIG))
            weights = io.BytesIO(archive.read(_WEIGHTS))
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: is no .keras archive ({reason})") from error
    _check_config(path, config)
    _check_weights(path, weights)
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except _LAYOUT_ERRORS as error:
        raise DataError(
            f"{path}: holds no network of this package ({error})"
        ) from error


def load_model(path: str) -> keras.Model:
    """Loads any model that `tf_keras` saved: a `.keras` or HDF5 file or a SavedModel.

    Code within layers (`Lambda`) is refused. A SavedModel holds graphs that can read
    and write files: load those you trust.

    Raises:
        FileNotFoundError: There is no such file or directory.
        DataError: It holds no Keras model, or one that cannot be built.
    """
    path = os.path.expanduser(os.fspath(path))
    if os.path.isdir(path):
        names = os.listdir(path)
        if "keras_metadata.pb" not in names:
            what = "a SavedModel" if "saved_model.pb" in names else "a directory"
            raise DataError(
                f"{path}: is {what} that holds no Keras layers; save the model itself, "
                "by model.save('NAME.keras')"
            )
    else:
        _check_any_file(_file(path))
    try:
        with serialization_lib.SafeModeScope(safe_mode=True):
            model = keras.models.load_model(path, compile=False)
    except (*_LAYOUT_ERRORS, ImportError, tf.errors.OpError) as error:
        reason = first_line(error)
        raise DataError(f"{path}: holds no Keras model ({reason})") from error
    if not isinstance(model, keras.Model):
        raise DataError(f"{path}: holds no Keras model ({type(model).__name__})")
    return model


def _check_any_file(path):
    """Raises DataError unless a file is a `.keras` archive or HDF5."""
    if h5py.is_hdf5(path):
        return _check_weights(path, path)
    try:
        with zipfile.ZipFile(path) as archive:
            if _CONFIG not in archive.namelist():
                raise DataError(f"{path}: is no .keras archive: it has no {_CONFIG}")
            for info in archive.infolist():
                reading.check_member(info)
    except (zipfile.BadZipFile, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: is neither a .keras archive nor an HDF5 file ({error})"
        ) from error


def load_weights(model: keras.Model, path: str) -> None:
    """Loads a `.weights.h5` file into a network.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is no HDF5 file, or of another layout or network.
    """
    path = _file(path)
    _check_weights(path, path)
    try:
        model.load_weights(path)
    except _LAYOUT_ERRORS as error:
        raise DataError(
            f"{path}: does not hold the weights of this network ({error})"
        ) from error


def unit_groups(path: str) -> list[tuple[str, int]] | None:
    """Returns names and numbers of units of the blocks in a `.weights.h5` file.

    None: it is of no network of this package. Names are those of Keras, such as
    `sact_block_1`.

    Raises:
        DataError: It is no HDF5 file.
    """
    _check_weights(path, path)
    with h5py.File(path, "r") as file:
        if _SCOPES not in file or "stem" not in file:
            return None
        scopes = file[_SCOPES]
        blocks = [name for name in scopes if "units" in scopes[name]]
        return [
            (name, len(scopes[name]["units"])) for name in sorted(blocks, key=_count)
        ]


def num_classes(path: str) -> int:
    """Returns the number of classes in a `.weights.h5` file; 0: no classifier."""
    with h5py.File(path, "r") as file:
        kernel = file.get(f"{_SCOPES}/conv2d/vars/0")
        return 0 if kernel is None else int(kernel.shape[-1])


def _count(name):
    """Orders names as Keras counted them: `block`, `block_1`, `block_10`."""
    number = name.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def save_network(model: keras.Model, path: str) -> None:
    """Writes a network as a `.keras` archive, whole or not at all."""
    with atomic_file(path) as temporary:
        model.save(temporary, save_format="keras")


def save_weights(model: keras.Model, path: str) -> None:
    """Writes a network's weights as a `.weights.h5` file, whole or not at all.

    Keras writes such a file by the HDF5 library, which ends the process where the disk
    is full; those within an archive it makes in memory.
    """
    directory = os.path.dirname(os.path.realpath(path))
    with naming(path), tempfile.TemporaryDirectory(".tmp", dir=directory) as work:
        whole = os.path.join(work, "model.keras")
        model.save(whole, save_format="keras")
        with zipfile.ZipFile(whole) as archive:
            content = archive.read(_WEIGHTS)
    write_bytes(path, content)


def _file(path):
    path = os.path.expanduser(os.fspath(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: does not exist")
    if not os.path.isfile(path):
        raise DataError(f"{path}: is no file")
    return path


def _check_config(path, config):
    """Raises DataError unless Keras makes a network of this package of it, only."""
    name = config.get("registered_name") if isinstance(config, dict) else None
    known = keras.saving.get_registered_object(name) if isinstance(name, str) else None
    if (
        known is None
        or not name.startswith(_PACKAGE)
        or not hasattr(known, "with_end_points")
    ):
        raise DataError(
            f"{path}: {_CONFIG} is of {brief(name)}; expected a network of this package"
        )
    options = config.get("config")
    if not isinstance(options, dict):
        raise DataError(f"{path}: {_CONFIG} has config {brief(options)}")
    for key, value in options.items():
        if not (_is_plain(value) or (key == "dtype" and _is_policy(value))):
            raise DataError(
                f"{path}: {_CONFIG} has {key} {brief(value)}; expected numbers and "
                "strings"
            )
    if has_too_many_units(options.get("model")):
        raise DataError(
            f"{path}: {_CONFIG} has model {brief(options['model'])}; expected at most "
            f"{MAX_UNITS} residual units per block"
        )


def _is_plain(value):
    values = value if isinstance(value, list) else [value]
    return all(v is None or isinstance(v, (bool, int, float, str)) for v in values)


def _is_policy(value):
    """Whether this is how Keras notes the types of mixed precision."""
    return (
        isinstance(value, dict)
        and (value.get("module"), value.get("class_name"))
        == ("keras.mixed_precision", "Policy")
        and isinstance(value.get("config"), dict)
        and all(map(_is_plain, value["config"].values()))
    )


def _check_weights(path, source):
    try:
        with h5py.File(source, "r") as file:
            reading.check_hdf5(file)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise DataError(f"{path}: holds no readable weights ({error})") from error
