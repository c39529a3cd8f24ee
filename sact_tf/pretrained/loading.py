"""Weights from a file into a network, once everything fits."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import tf_keras as keras

from sact_tf.checkpoint_kinds import DETECTOR, SEGMENTER, kind_of
from sact_tf.checkpoints import (
    checkpoint_kind,
    fitting_variables,
    form_of,
    load_slim_checkpoint,
    slim_variables,
)
from sact_tf.pretrained import keras_hdf5
from sact_tf.pretrained.formats import identify
from sact_tf.pretrained.sources import SOURCES, Found

_IMAGENET = 1000
# Of a class that weights do not know: no logit is as low, and float16 has it.
_NEVER = -100.0
_APPLICATIONS = {"3_4_6_3": "50", "3_4_23_3": "101", "3_8_36_3": "152"}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What `load_pretrained` did.

    Attributes:
        source: Where the weights are from, in words.
        variables: Sorted TF-Slim names of the variables loaded.
        notes: What was done beside, a sentence each.
    """

    source: str
    variables: tuple[str, ...]
    notes: tuple[str, ...]


def load_pretrained(
    model: keras.Model,
    path: str,
    *,
    source: str | None = None,
    fresh_halting: bool | None = True,
    first_units: bool = False,
    without_classifier: bool = False,
) -> Pretrained:
    """Loads weights of this project or of elsewhere into a network.

    The format is found by content: TF-Slim checkpoints of this project, the original
    code or TF-Slim; `.keras` and `.weights.h5` files of this project; `.h5` files of
    Keras Applications; `.weights.h5` files of KerasHub; `.safetensors` files of timm.
    No code in a file is run. Nothing is assigned unless everything fits.

    Iterative networks take checkpoints of this project alone.

    A classifier of ImageNet's 1000 classes fits one of 1001, and the other way round:
    the background is class 0, and the notes say what became of it.

    Args:
        model: From `imagenet_resnet` or `cifar_resnet`.
        path: A file, or the prefix of a checkpoint, or a directory, whose latest
            checkpoint is taken.
        source: Of a checkpoint whose root scope does not tell: "slim" (strides as in
            TF-Slim) or "sact" (as in this project).
        fresh_halting: As in `load_slim_checkpoint`: halting variables stay as
            initialised; None: where the file has none.
        first_units: As in `load_slim_checkpoint`: the file may have more units.
        without_classifier: Passes over the classifier, which stays as initialised.
            Networks without one do so in any case.

    Returns:
        What was loaded.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is of no known format, cut off, or of no network that fits.
        ValueError: It is of a network of another kind, depth, width, form or number of
            classes; the message says what was found and what fits.
        ImportError: The package that reads it is not installed.
    """
    plan = getattr(model, "architecture", None)
    if plan is not None and plan.make_block is not None:  # no units that others have
        loaded = load_slim_checkpoint(
            model,
            path,
            fresh_halting=fresh_halting,
            without_classifier=without_classifier,
        )
        return Pretrained(SOURCES["sact"].description, tuple(loaded), ())
    found = identify(path, source, model)
    return load_found(model, found, fresh_halting, first_units, without_classifier)


def load_first_weights(
    model: keras.Model, path: str, without_classifier: bool = False
) -> list[str]:
    """Loads weights that a detector or a segmentation network starts from.

    Of a model of its own kind all is found. Of a classification network, in any format
    of `load_pretrained`, and of a model of the other kind, the residual network is;
    what stands around it stays as initialised. Halting variables stay so too where
    there are none.

    Args:
        model: A detector or a segmentation network.
        path: A file, or a checkpoint prefix, or a directory, whose latest checkpoint is
            taken.
        without_classifier: Whether what tells classes apart is passed over in a model
            of the same kind, for other classes.

    Returns:
        The sorted names of the variables loaded.

    Raises:
        FileNotFoundError: There is no readable checkpoint.
        ValueError: It is another network's.
    """
    path = os.path.expanduser(path)
    kind = None if os.path.isfile(path) else checkpoint_kind(path)
    if kind not in (DETECTOR, SEGMENTER):
        loaded = load_pretrained(
            model.network, path, fresh_halting=None, without_classifier=True
        )
        return list(loaded.variables)
    is_own = kind == kind_of(slim_variables(model))
    return load_slim_checkpoint(
        model if is_own else model.network,
        path,
        fresh_halting=None,
        without_classifier=without_classifier or not is_own,
    )


def load_found(
    model: keras.Model,
    found: Found,
    fresh_halting: bool | None = True,
    first_units: bool = False,
    without_classifier: bool = False,
) -> Pretrained:
    """Loads weights that `identify` returned; see `load_pretrained`."""
    _check(model, found, first_units)
    tensors, notes = dict(found.tensors), []
    without_classifier |= model.options.num_classes == 0
    if not without_classifier:
        notes = _adapt_classes(model, found, tensors)
    stored = {f"{model.slim_scope}/{name}": value for name, value in tensors.items()}
    shapes = {name: list(value.shape) for name, value in stored.items()}
    wanted = fitting_variables(
        model, found.path, shapes, fresh_halting, first_units, without_classifier
    )
    for name, variable in wanted.items():
        variable.assign(stored[name].astype(variable.dtype.as_numpy_dtype))
    return Pretrained(found.source.description, tuple(sorted(wanted)), tuple(notes))


def _check(model, found, first_units):
    """Raises ValueError unless kind, depth, width and form are the network's."""
    options = model.options
    kind = "an ImageNet" if found.is_imagenet else "a CIFAR"
    holds = (
        f"{found.path}: does not fit the network: it holds weights of "
        f"{found.source.description},"
    )
    if found.is_imagenet != (model.slim_scope == "resnet_v2"):
        raise ValueError(
            f"{holds} of {kind} network; this one is a {type(model).__name__}"
        )
    units, own = ([int(n) for n in u.split("_")] for u in (found.units, options.model))
    fits = [n >= m if first_units else n == m for n, m in zip(units, own)]
    if len(units) != len(own) or not all(fits):
        raise ValueError(
            f"{holds} with {found.units} units per block; the network has "
            f"{options.model}; make it with model={found.units!r}"
        )
    if found.base_channels != options.base_channels:
        raise ValueError(
            f"{holds} with {found.base_channels} channels in the first block; the "
            f"network has {options.base_channels}; make it with "
            f"base_channels={found.base_channels}"
        )
    if found.form is not None:
        found.form.check(found.path, form_of(model))
    needed = found.source.preprocessing
    if needed not in (None, options.preprocessing):
        raise ValueError(
            f"{holds} whose images are {needed}; those of the network are "
            f"{options.preprocessing}"
        )


def _adapt_classes(model, found, tensors):
    """Adds or takes away the background class in place; returns notes of it."""
    classes, own = found.num_classes, model.options.num_classes
    if classes == own:
        return []
    weights, biases = (tensors.get(f"logits/{name}") for name in ("weights", "biases"))
    if (classes, own) == (_IMAGENET, _IMAGENET + 1):
        weights = np.pad(weights, [(0, 0), (0, 0), (0, 0), (1, 0)])
        biases = np.concatenate([np.full([1], _NEVER, biases.dtype), biases])
        note = "the background, class 0, is new and never predicted"
    elif (classes, own) == (_IMAGENET + 1, _IMAGENET):
        weights, biases = weights[..., 1:], biases[1:]
        note = "the background, class 0, was left out"
    else:
        has = f"{classes} classes" if classes else "no classifier"
        raise ValueError(
            f"{found.path}: does not fit the network: it holds {has}, the network has "
            f"{own}. Load all else with without_classifier=True"
        )
    tensors.update({"logits/weights": weights, "logits/biases": biases})
    return [f"{classes} classes became {own}: {note}"]


def read_keras_applications(units: str) -> Found:
    """Downloads the weights of ResNet50V2, 101V2 or 152V2, or finds them cached.

    Args:
        units: Per block, such as "3_4_6_3".

    Raises:
        ValueError: There is no such network.
        OSError: They cannot be had; the message names the file, and what to do with it.
    """
    if units not in _APPLICATIONS:
        raise ValueError(
            "weights='keras_applications' needs model='50', '101' or '152'; got "
            f"{units!r}"
        )
    name = f"ResNet{_APPLICATIONS[units]}V2"
    try:
        network = getattr(keras.applications, name)(weights="imagenet")
    except Exception as error:  # which is what Keras raises where it has no network
        file = f"{name.lower()}_weights_tf_dim_ordering_tf_kernels.h5"
        raise OSError(
            f"weights='keras_applications': {file} cannot be downloaded "
            f"({' '.join(str(error).split())}); fetch it where there is a network and "
            "put it into ~/.keras/models, or give its path as weights="
        ) from error
    layers = {layer.name: layer.get_weights() for layer in network.layers}
    return keras_hdf5.from_layers(f"keras.applications.{name}", layers)
