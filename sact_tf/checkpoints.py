"""TF-Slim checkpoints: the format of the original code and its published networks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import checkpoint_kinds
from sact_tf.checkpoint_files import (  # noqa: F401 (some as which they are known)
    is_pattern,
    newest_checkpoint,
    open_checkpoint,
    plain_prefix,
    read_tensors,
    write_tensors,
)
from sact_tf.layers import BatchNorm
from sact_tf.networks.options import Form, read_form

FORM = "network_form"
"""Name of a string in the checkpoints of networks of another form than the original's,
which says of which; such as "zeros,input"."""

# What trained checkpoints hold beside the network.
_TRAINING_STATE = re.compile(
    rf"^global_step$|^{FORM}$|^optimizer/"
    r"|/(Momentum|ExponentialMovingAverage|optimizer/[^/]+)$"
)


class CheckpointMismatchError(ValueError):
    """A checkpoint does not fit the network; the message lists every such variable.

    Attributes:
        missing: Names the network needs and the checkpoint lacks.
        unused: Names only the checkpoint has.
        wrong_shape: Name, shape in the checkpoint and shape in the network.
    """

    def __init__(
        self,
        checkpoint_path: str,
        missing: Iterable[str] = (),
        unused: Iterable[str] = (),
        wrong_shape: Iterable[tuple[str, list[int], list[int]]] = (),
    ):
        self.missing = sorted(missing)
        self.unused = sorted(unused)
        self.wrong_shape = sorted(wrong_shape)
        lines = [f"checkpoint {checkpoint_path} does not fit the network:"]
        for title, rows in (
            ("missing in the checkpoint", self.missing),
            ("not used by the network", self.unused),
            (
                "of another shape",
                [f"{n}: checkpoint {c}, network {m}" for n, c, m in self.wrong_shape],
            ),
        ):
            if rows:
                lines.append(f"{len(rows)} variable(s) {title}:")
                lines += [f"  {row}" for row in rows]
        super().__init__("\n".join(lines))


def slim_variables(model: keras.Model) -> dict[str, tf.Variable]:
    """Returns the variables of a network of this package by their TF-Slim names.

    Those of any other `tf_keras` model have the names that Keras gave them, which begin
    with their layers'.

    Raises:
        ValueError: Two variables of another model have the same name.
    """
    if not hasattr(model, "slim_scope"):
        return _by_keras_names(model)
    variables: dict[str, tf.Variable] = {}
    _collect(model, model.slim_scope, variables)
    return variables


def _by_keras_names(model):
    variables = {}
    for variable in model.weights:
        name = variable.name.partition(":")[0]
        if name in variables:
            raise ValueError(
                f"model {model.name} has two variables {name}; give its layers names "
                "that differ"
            )
        variables[name] = variable
    return variables


def _collect(layer, scope, variables):
    if isinstance(layer, BatchNorm):
        for name in ("beta", "gamma", "moving_mean", "moving_variance"):
            variables[f"{scope}/{name}"] = getattr(layer, name)
    elif isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense)):
        variables[f"{scope}/weights"] = layer.kernel
        if layer.use_bias:
            variables[f"{scope}/biases"] = layer.bias
    elif isinstance(layer, keras.layers.DepthwiseConv2D):
        variables[f"{scope}/depthwise_weights"] = layer.depthwise_kernel
    else:
        for name, child in layer.slim_scopes.items():
            _collect(child, f"{scope}/{name}" if scope else name, variables)


def checkpoint_kind(checkpoint_path: str) -> str | None:
    """Returns what kind of model a TF-Slim checkpoint is of; see `checkpoint_kinds`.

    Args:
        checkpoint_path: A checkpoint prefix, or a directory, whose latest checkpoint is
            taken.

    Raises:
        FileNotFoundError: There is no readable checkpoint.
    """
    _, reader = open_checkpoint(checkpoint_path)
    return checkpoint_kinds.kind_of(reader.get_variable_to_shape_map())


def checkpoint_step(checkpoint_path: str) -> int:
    """Returns the `global_step` of a TF-Slim checkpoint, 0 if it has none."""
    _, reader = open_checkpoint(checkpoint_path)
    if not reader.has_tensor("global_step"):
        return 0
    return int(reader.get_tensor("global_step"))


def optimizer_variables(
    optimizer: keras.optimizers.Optimizer, names: Mapping[str, tf.Variable]
) -> dict[str, tf.Variable]:
    """Returns an optimizer's variables, but for step and rate, by their names.

    A slot of a variable is named after it: `<variable>/Momentum` for the accumulator of
    `SGD` and `Momentum`, as in TF-Slim, otherwise `<variable>/optimizer/<slot>`, such
    as `.../optimizer/v` of Adam.

    Args:
        optimizer: Any of `tf_keras`, built for the variables.
        names: The variables by their names in checkpoints.
    """
    of_keras = {
        variable._shared_name: name  # what Keras names slots after
        for name, variable in names.items()
        if variable.trainable
    }
    is_sgd = isinstance(optimizer, keras.optimizers.SGD)
    rates = ("_learning_rate", "_current_learning_rate")
    apart = {id(optimizer.iterations)} | {id(vars(optimizer).get(r)) for r in rates}
    variables = {}
    others = {  # which an optimizer does not list, such as Nadam's product
        f"optimizer/{name}": value
        for name, value in vars(optimizer).items()
        if isinstance(value, tf.Variable)
    }
    listed = {id(variable) for variable in optimizer.variables}
    for name, variable in others.items():
        if id(variable) not in apart | listed:
            variables[name] = variable
    for variable in optimizer.variables:
        if id(variable) in apart:
            continue
        slot, _, reference = variable.name.partition(":")[0].partition("/")
        if reference not in of_keras:
            variables[f"optimizer/{variable.name.partition(':')[0]}"] = variable
        elif is_sgd:
            variables[f"{of_keras[reference]}/Momentum"] = variable
        else:
            variables[f"{of_keras[reference]}/optimizer/{slot}"] = variable
    return variables


def restore_variables(checkpoint_path: str, wanted: Mapping[str, tf.Variable]) -> None:
    """Assigns variables from a checkpoint, which may hold others too.

    Args:
        checkpoint_path: A checkpoint prefix.
        wanted: Variables by their names in the checkpoint.

    Raises:
        FileNotFoundError: There is no readable checkpoint.
        CheckpointMismatchError: Variables are missing or of another shape; none is
            assigned.
        CheckpointKindError: It is a detector's and they are a classification network's,
            or the other way round.
    """
    path, reader = open_checkpoint(checkpoint_path)
    stored = reader.get_variable_to_shape_map()
    checkpoint_kinds.refuse_other_kind(path, stored, wanted)
    missing, wrong_shape = _compare(stored, wanted)
    if missing or wrong_shape:
        unused = {n for n in set(stored) - set(wanted) if not _TRAINING_STATE.search(n)}
        raise CheckpointMismatchError(path, missing, unused, wrong_shape)
    for name, value in read_tensors(path, reader, wanted).items():
        wanted[name].assign(value)


def _compare(stored, wanted):
    missing = set(wanted) - set(stored)
    wrong_shape = [
        (name, list(stored[name]), variable.shape.as_list())
        for name, variable in wanted.items()
        if name in stored and list(stored[name]) != variable.shape.as_list()
    ]
    return missing, wrong_shape


def load_slim_checkpoint(
    model: keras.Model,
    checkpoint_path: str,
    *,
    fresh_halting: bool | None = False,
    first_units: bool = False,
    without_classifier: bool = False,
) -> list[str]:
    """Loads a TF-Slim checkpoint into a network of this package.

    Optimizer slots and the step are passed over. Nothing is assigned unless everything
    fits.

    Args:
        model: From `imagenet_resnet` or `cifar_resnet`.
        checkpoint_path: A checkpoint prefix, or a directory, whose latest checkpoint is
            taken.
        fresh_halting: Two-stage initialisation (SACT, section 4.1): halting variables
            are not restored and stay as initialised; the checkpoint need not have any.
            None: that is so where the checkpoint has none.
        first_units: Lets the checkpoint have more units per block than the network,
            which takes the first ones: the paper's non-adaptive baseline. Halting
            variables the network has no place for are passed over too.
        without_classifier: Passes over the classifier, for networks with other classes
            or another use; it stays as initialised. Also over what else stands around
            the network's blocks, as in a detector's checkpoint.

    Returns:
        The sorted names of the variables loaded.

    Raises:
        FileNotFoundError: There is no readable checkpoint.
        CheckpointMismatchError: Variables are missing, unused, or of another shape.
        CheckpointKindError: It is a detector's and the model a classification network,
            or the other way round.
        ValueError: The checkpoint is of a network of another form.
    """
    path, reader = open_checkpoint(checkpoint_path)
    form_in(reader).check(path, form_of(model))
    stored = network_variables(reader)
    wanted = fitting_variables(
        model, path, stored, fresh_halting, first_units, without_classifier
    )
    for name, value in read_tensors(path, reader, wanted).items():
        wanted[name].assign(value)
    return sorted(wanted)


def network_variables(reader) -> dict[str, list[int]]:
    """Returns the shapes of a checkpoint's variables, but for what only training needs.

    Args:
        reader: Of an open checkpoint.
    """
    shapes = reader.get_variable_to_shape_map()
    return {n: shape for n, shape in shapes.items() if not _TRAINING_STATE.search(n)}


def form_of(model: keras.Model) -> Form:
    """Returns the form of a network, or of a detector's network."""
    options = getattr(getattr(model, "network", model), "options", None)
    return getattr(options, "form", Form())


def form_in(reader) -> Form:
    """Returns the form that a checkpoint says, which is the original's if it does not.

    Args:
        reader: Of an open checkpoint.
    """
    if not reader.has_tensor(FORM):
        return Form()
    return read_form(reader.get_tensor(FORM).decode())


def form_tensors(form: Form) -> dict[str, np.ndarray]:
    """Returns what a checkpoint holds beside variables to tell the network's form."""
    return {} if form == Form() else {FORM: np.array(",".join(form).encode())}


def fitting_variables(
    model: keras.Model,
    path: str,
    stored: Mapping[str, Sequence[int]],
    fresh_halting: bool | None,
    first_units: bool,
    without_classifier: bool,
) -> dict[str, tf.Variable]:
    """Returns a network's variables that stored ones are for, by their names.

    Args:
        model: The network.
        path: What an error calls the file.
        stored: Shapes of what is stored, by names.
        fresh_halting: As in `load_slim_checkpoint`, and so are all others.
        first_units: The same.
        without_classifier: The same.

    Raises:
        CheckpointMismatchError: Variables are missing, unused, or of another shape.
    """
    wanted = slim_variables(model)
    allowed_extra = set()
    if fresh_halting is None:
        fresh_halting = not any("/halting_proba/" in name for name in stored)
    if fresh_halting:
        wanted = {n: v for n, v in wanted.items() if "/halting_proba/" not in n}
        allowed_extra |= {n for n in stored if "/halting_proba/" in n}
    if without_classifier:
        scopes = model.classifier_scopes
        network = f"{model.slim_scope}/"
        wanted = {n: v for n, v in wanted.items() if not n.startswith(scopes)}
        allowed_extra |= {n for n in stored if not n.startswith(network)}
        allowed_extra |= {n for n in stored if n.startswith(scopes)}
    if first_units:
        units = {block.name: len(block.units) for block in model.blocks}
        allowed_extra |= {n for n in stored if _is_deeper(n, units)}
        if not any("/halting_proba/" in n for n in wanted):
            allowed_extra |= {n for n in stored if "/halting_proba/" in n}
    checkpoint_kinds.refuse_other_kind(path, stored, wanted)
    missing, wrong_shape = _compare(stored, wanted)
    unused = set(stored) - set(wanted) - allowed_extra
    if missing or unused or wrong_shape:
        raise CheckpointMismatchError(path, missing, unused, wrong_shape)
    return wanted


def _is_deeper(name: str, units: dict[str, int]) -> bool:
    """Whether a variable belongs to a unit or head beyond those the network has."""
    match = re.match(r"[^/]+/([^/]+)/unit_(\d+)/(halting_proba/)?", name)
    if not match or match[1] not in units:
        return False
    # The last unit of a block has no head.
    limit = units[match[1]] - (1 if match[3] else 0)
    return int(match[2]) > limit


def save_slim_checkpoint(
    model: keras.Model, checkpoint_path: str, global_step: int = 0
) -> str:
    """Writes a network of this package as a TF-Slim checkpoint.

    Args:
        model: From `imagenet_resnet` or `cifar_resnet`.
        checkpoint_path: Prefix to write, such as "dir/model.ckpt-0".
        global_step: Stored as the int64 `global_step` that TF-Slim expects.

    Returns:
        The prefix written.
    """
    tensors = {k: tf.convert_to_tensor(v) for k, v in slim_variables(model).items()}
    tensors.update(form_tensors(form_of(model)))
    return write_tensors(os.fspath(checkpoint_path), tensors, global_step)


def squeeze_checkpoint(checkpoint_path: str, output_dir: str) -> str:
    """Copies a TF-Slim checkpoint without what only training needs.

    Args:
        checkpoint_path: A checkpoint prefix, or a directory, whose latest checkpoint is
            taken.
        output_dir: Directory of the copy, which has the same name.

    Returns:
        The prefix written.

    Raises:
        FileNotFoundError: There is no readable checkpoint.
        ValueError: The copy would take the checkpoint's own place.
    """
    path, reader = open_checkpoint(checkpoint_path)
    to = os.path.join(os.fspath(output_dir), os.path.basename(path))
    if os.path.realpath(to) == os.path.realpath(path):
        raise ValueError(f"output_dir must not be the checkpoint's own; got {to}")
    names = sorted(reader.get_variable_to_shape_map())
    kept = [n for n in names if n == FORM or not _TRAINING_STATE.search(n)]
    return write_tensors(to, read_tensors(path, reader, kept), checkpoint_step(path))
