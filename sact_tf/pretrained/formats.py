"""Which format a file of weights has, by its content, and who reads it."""

from __future__ import annotations

import os
import re
import zipfile

import tensorflow as tf
import tf_keras as keras

from sact_tf import checkpoints, keras_files
from sact_tf.checkpoint_files import open_checkpoint, read_tensors
from sact_tf.data.examples import DataError
from sact_tf.domains import brief
from sact_tf.pretrained import keras_hdf5, timm
from sact_tf.pretrained.sources import EXPLAINED, OTHERS, SOURCES, Found, units_of

KNOWN = (
    "a TF-Slim checkpoint, a .keras or .weights.h5 file of this project, an .h5 file "
    "of Keras Applications, a .weights.h5 file of KerasHub, a .safetensors file of timm"
)
_SLIM_ROOT = re.compile(r"resnet_v2_(50|101|152|200)$")
_CHECKPOINT_FILE = re.compile(r"\.(index|data-\d{5}-of-\d{5})$")
_MODEL_TYPES = {"plain_block": "vanilla", "act_block": "act", "sact_block": "sact"}


def identify(
    path: str, source: str | None = None, model: keras.Model | None = None
) -> Found:
    """Reads the weights in a file of any known format; runs no code of it.

    Args:
        path: A file, or the prefix of a checkpoint, or a directory of checkpoints.
        source: Of a checkpoint whose root scope does not tell: "slim" or "sact".
        model: What a `.weights.h5` file of this project is read for; such a file does
            not tell the network.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is of no known format, cut off, or holds no network that fits.
        ImportError: The package that reads it is not installed.
    """
    path = os.path.expanduser(os.fspath(path))
    path = _CHECKPOINT_FILE.sub("", path)
    if source not in (None, *SOURCES):
        raise ValueError(f"source must be one of {', '.join(SOURCES)}; got {source!r}")
    if os.path.isdir(path) and os.path.exists(os.path.join(path, "saved_model.pb")):
        raise DataError(
            f"{path}: is a SavedModel, which does not tell its weights apart; known "
            f"are {KNOWN}"
        )
    if tf.io.gfile.isdir(path) or tf.io.gfile.exists(f"{path}.index"):
        found = _read_slim(path, source)
    elif not os.path.isfile(path):
        raise FileNotFoundError(
            f"no readable TF-Slim checkpoint at {path}, and no file of that name"
        )
    else:
        found = _read_file(path, model)
    if source not in (None, found.source.name):
        raise DataError(
            f"{path}: holds weights of {found.source.description}, as its content "
            f"tells; got source={source!r}"
        )
    return found


def _read_file(path, model):
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _read_hdf5(path, model)
    if head.startswith(b"PK"):
        return _read_archive(path)
    if re.match(rb"\x80[\x02-\x05]", head):
        raise _is_pickle(path)
    if head[8:9] == b"{" or path.endswith(".safetensors"):
        return timm.read(path)
    raise DataError(f"{path}: is of no known format; known are {KNOWN}")


def _is_pickle(path):
    return DataError(
        f"{path}: is a pickle, as of PyTorch, and reading it can run any code; use the "
        "same weights as .safetensors"
    )


def _read_archive(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: is truncated ({error})") from error
    if any(name.endswith("data.pkl") for name in names):
        raise _is_pickle(path)
    if "config.json" not in names:
        raise DataError(f"{path}: is of no known format; known are {KNOWN}")
    return _of_network(path, keras_files.load_network(path))


def _of_network(path, network):
    """Returns what a network of this project holds."""
    variables = checkpoints.slim_variables(network)
    start = f"{network.slim_scope}/"
    tensors = {n.removeprefix(start): v.numpy() for n, v in variables.items()}
    form = checkpoints.form_of(network)
    return Found(path, SOURCES["sact"], tensors, form, start == "resnet_v2/")


def _read_hdf5(path, model):
    groups = keras_files.unit_groups(path)
    if groups is None:
        return keras_hdf5.read(path)
    if model is None:
        raise DataError(
            f"{path}: does not tell its network; load it with load_pretrained(model, "
            "path)"
        )
    kinds = [re.sub(r"_\d+$", "", block) for block, _ in groups]
    config = model.get_config()
    config["model_type"] = _MODEL_TYPES.get(kinds[0], config["model_type"])
    config["model"] = "_".join(str(count) for _, count in groups)
    if config["model_type"] == "vanilla":
        config.update(tile_size=1, execution="masked")
    config["num_classes"] = keras_files.num_classes(path)
    config["pooling"] = None
    network = type(model).from_config(config)
    keras_files.load_weights(network, path)
    return _of_network(path, network)


def _read_slim(path, source):
    path, reader = open_checkpoint(path)
    shapes = checkpoints.network_variables(reader)
    roots = sorted({name.partition("/")[0] for name in shapes})
    if {"rpn", "box_classifier"} & set(roots):
        raise DataError(f"{path}: is the checkpoint of a detector, not of a network")
    root = _root(path, roots, source)
    if re.match(r"resnet_v1", root):
        raise DataError(f"{path}: holds weights {EXPLAINED['v1']}")
    if root in OTHERS:
        raise DataError(
            f"{path}: is the checkpoint of {OTHERS[root]}, which fits only such a one"
        )
    is_slim = source == "slim" or bool(_SLIM_ROOT.match(root))
    is_sact = source == "sact" or root in ("resnet_v2", "resnet_residual")
    if not is_slim and not is_sact:
        raise DataError(
            f"{path}: has the root scope {brief(root)}, which does not tell where it "
            "is from; say source='slim' or source='sact'"
        )
    inside = [name for name in shapes if name.startswith(f"{root}/")]
    tensors = {
        name.removeprefix(f"{root}/"): value
        for name, value in read_tensors(path, reader, inside).items()
    }
    if not units_of(tensors):
        raise DataError(f"{path}: holds no residual network of this project or TF-Slim")
    found = SOURCES["slim" if is_slim else "sact"]
    form = found.form or checkpoints.form_in(reader)
    return Found(path, found, tensors, form, "conv1/weights" in tensors)


def _root(path, roots, source):
    """Returns the scope of the network among those of a checkpoint."""
    known = [r for r in roots if r.startswith("resnet_")]
    candidates = known or roots
    if len(candidates) != 1:
        raise DataError(
            f"{path}: has the root scopes {', '.join(roots[:5]) or '(none)'}; "
            "expected that of one network"
        )
    return candidates[0]
