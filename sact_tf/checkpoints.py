"""TF-Slim checkpoints: the format of the original code and its published networks."""

from __future__ import annotations

import atexit
import functools
import glob
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import checkpoint_kinds
from sact_tf.layers import BatchNorm
from sact_tf.writing import naming, write_bytes

# What trained checkpoints hold beside the network.
_TRAINING_STATE = re.compile(
    r"^global_step$|^optimizer/|/(Momentum|ExponentialMovingAverage|optimizer/[^/]+)$"
)

# What TensorFlow raises on checkpoints that are missing, cut off or something else.
_READ_ERRORS = (tf.errors.OpError, ValueError, IndexError, RuntimeError)


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
    """Returns the variables of a network of this package by their TF-Slim names."""
    variables: dict[str, tf.Variable] = {}
    _collect(model, model.slim_scope, variables)
    return variables


def _collect(layer, scope, variables):
    if isinstance(layer, BatchNorm):
        for name in ("beta", "gamma", "moving_mean", "moving_variance"):
            variables[f"{scope}/{name}"] = getattr(layer, name)
    elif isinstance(layer, keras.layers.Conv2D):
        variables[f"{scope}/weights"] = layer.kernel
        if layer.use_bias:
            variables[f"{scope}/biases"] = layer.bias
    else:
        for name, child in layer.slim_scopes.items():
            _collect(child, f"{scope}/{name}" if scope else name, variables)


def newest_checkpoint(directory: str) -> str | None:
    """Returns the prefix of the newest complete checkpoint, None if there is none.

    The newest is what the file `checkpoint` says, and where that is missing, damaged or
    wrong, the one of the highest step. When files were written or copied tells nothing.
    Warns of newer ones that are passed over because their files are cut off or missing.

    Args:
        directory: Of TF-Slim checkpoints, with or without the file `checkpoint`.

    Raises:
        FileNotFoundError: There are checkpoints, and none is complete.
    """
    directory = os.fspath(directory)
    state = _directory_state(directory)
    last = [state.model_checkpoint_path] if state else []
    listed = list(state.all_model_checkpoint_paths) if state else []
    found = [
        path.removesuffix(".index")
        for path in glob.glob(os.path.join(glob.escape(directory), "*.index"))
    ]
    others = sorted(dict.fromkeys([*listed, *found]), key=_age, reverse=True)
    candidates = list(dict.fromkeys([*last, *others]))
    for k, prefix in enumerate(candidates):
        if _is_complete(prefix, _stamps(prefix)):
            if k:
                names = ", ".join(os.path.basename(path) for path in candidates[:k])
                warnings.warn(
                    f"{directory}: passing over {names}, which is incomplete; using "
                    f"{os.path.basename(prefix)}",
                    stacklevel=2,
                )
            return prefix
    if candidates:
        names = ", ".join(os.path.basename(path) for path in candidates)
        raise FileNotFoundError(
            f"directory {directory} holds no complete checkpoint, only parts of {names}"
        )
    return None


def _directory_state(directory: str):
    """Reads a directory's file `checkpoint`; None if it is not there or damaged."""
    try:
        state = tf.train.get_checkpoint_state(directory)
    except (tf.errors.OpError, ValueError, UnicodeDecodeError):
        state = None
    return state if state and state.model_checkpoint_path else None


def _age(prefix: str) -> tuple[int, list[int]]:
    """Orders checkpoints: by the step in them, else by the numbers in their names."""
    numbers = [int(digits) for digits in re.findall(r"\d+", os.path.basename(prefix))]
    try:
        reader = _reader(prefix)
        if reader.has_tensor("global_step"):
            return int(reader.get_tensor("global_step")), numbers
    except _READ_ERRORS:
        pass
    return (numbers[-1] if numbers else -1), numbers


@functools.cache
def _links() -> str:
    """A directory for links, which goes with the process."""
    directory = tempfile.mkdtemp(prefix="sact_tf_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def is_pattern(path: str) -> bool:
    """Tells whether TensorFlow takes a checkpoint's path for a pattern of paths."""
    return re.search(r"[][*?\\]", path) is not None


def plain_prefix(prefix: str) -> str:
    """Returns a prefix that TensorFlow can read a checkpoint by.

    TensorFlow takes prefixes for patterns, and does not find the files of a path with
    `[`, `]`, `*`, `?` or a backslash in it. They are then read through links.

    Args:
        prefix: Of a checkpoint on this machine, or of a remote file system.
    """
    if not is_pattern(prefix):
        return prefix
    number = len(os.listdir(_links()))
    directory = os.path.join(_links(), str(number))
    os.mkdir(directory)
    for path in glob.glob(f"{glob.escape(prefix)}.*"):
        ending = path.removeprefix(prefix)
        os.symlink(os.path.abspath(path), os.path.join(directory, f"model{ending}"))
    return os.path.join(directory, "model")


def _reader(prefix: str):
    """Opens a checkpoint."""
    return tf.train.load_checkpoint(plain_prefix(prefix))


def _stamps(prefix: str) -> tuple[tuple[str, int, int], ...]:
    """Returns name, size and time of a checkpoint's files."""
    files = sorted(glob.glob(f"{glob.escape(prefix)}.*"))
    return tuple((f, os.stat(f).st_size, os.stat(f).st_mtime_ns) for f in files)


@functools.lru_cache(maxsize=16)
def _is_complete(prefix: str, stamps: tuple) -> bool:
    """Whether all tensors of a checkpoint can be read; asked once per state of it."""
    try:
        reader = _reader(prefix)
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except _READ_ERRORS:
        return False
    return True


def _open(checkpoint_path: str):
    """Opens a checkpoint prefix or directory; returns the prefix and a reader."""
    path = os.fspath(checkpoint_path)
    if tf.io.gfile.isdir(path):
        newest = newest_checkpoint(path)
        if newest is None:
            raise FileNotFoundError(f"no checkpoint in directory {path}")
        path = newest
    try:
        return path, _reader(path)
    except _READ_ERRORS as error:
        raise FileNotFoundError(
            f"no readable TF-Slim checkpoint at {path}: {str(error).splitlines()[0]}"
        ) from error


def _read(path: str, reader, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Reads tensors of an open checkpoint."""
    try:
        return {name: reader.get_tensor(name) for name in names}
    except _READ_ERRORS as error:
        raise FileNotFoundError(
            f"TF-Slim checkpoint {path} is truncated or corrupt: {error}"
        ) from error


def checkpoint_kind(checkpoint_path: str) -> str | None:
    """Returns what kind of model a TF-Slim checkpoint is of; see `checkpoint_kinds`.

    Args:
        checkpoint_path: A checkpoint prefix, or a directory, whose latest checkpoint is
            taken.

    Raises:
        FileNotFoundError: There is no readable checkpoint.
    """
    _, reader = _open(checkpoint_path)
    return checkpoint_kinds.kind_of(reader.get_variable_to_shape_map())


def checkpoint_step(checkpoint_path: str) -> int:
    """Returns the `global_step` of a TF-Slim checkpoint, 0 if it has none."""
    _, reader = _open(checkpoint_path)
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
    path, reader = _open(checkpoint_path)
    stored = reader.get_variable_to_shape_map()
    checkpoint_kinds.refuse_other_kind(path, stored, wanted)
    missing, wrong_shape = _compare(stored, wanted)
    if missing or wrong_shape:
        unused = {n for n in set(stored) - set(wanted) if not _TRAINING_STATE.search(n)}
        raise CheckpointMismatchError(path, missing, unused, wrong_shape)
    for name, value in _read(path, reader, wanted).items():
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
    """
    path, reader = _open(checkpoint_path)
    stored = {
        name: shape
        for name, shape in reader.get_variable_to_shape_map().items()
        if not _TRAINING_STATE.search(name)
    }
    wanted = slim_variables(model)
    allowed_extra = set()
    if fresh_halting is None:
        fresh_halting = not any("/halting_proba/" in name for name in stored)
    if fresh_halting:
        wanted = {n: v for n, v in wanted.items() if "/halting_proba/" not in n}
        allowed_extra |= {n for n in stored if "/halting_proba/" in n}
    if without_classifier:
        network = f"{model.slim_scope}/"
        classifier = f"{network}logits/"
        wanted = {n: v for n, v in wanted.items() if not n.startswith(classifier)}
        allowed_extra |= {n for n in stored if not n.startswith(network)}
        allowed_extra |= {n for n in stored if n.startswith(classifier)}
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
    for name, value in _read(path, reader, wanted).items():
        wanted[name].assign(value)
    return sorted(wanted)


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
    path, reader = _open(checkpoint_path)
    to = os.path.join(os.fspath(output_dir), os.path.basename(path))
    if os.path.realpath(to) == os.path.realpath(path):
        raise ValueError(f"output_dir must not be the checkpoint's own; got {to}")
    names = sorted(reader.get_variable_to_shape_map())
    kept = [name for name in names if not _TRAINING_STATE.search(name)]
    return write_tensors(to, _read(path, reader, kept), checkpoint_step(path))


def write_tensors(
    path: str,
    tensors: Mapping[str, tf.Tensor | np.ndarray],
    global_step: int,
    keep: int | None = None,
) -> str:
    """Writes a checkpoint and makes it its directory's newest.

    Args:
        path: Prefix to write.
        tensors: By their names.
        global_step: Stored under that name as int64.
        keep: How many checkpoints the directory shall remember; older ones are
            deleted. None: only the new one is remembered, and none deleted.

    Returns:
        `path`.

    Raises:
        WritingError: The disk is full, or cannot be written to.
    """
    tensors = {**tensors, "global_step": np.int64(global_step)}
    directory = os.path.dirname(path) or "."
    with naming(path), tf.device("cpu:0"):
        tf.io.gfile.makedirs(directory)
        tf.raw_ops.SaveV2(
            prefix=path,
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=[tf.convert_to_tensor(tensor) for tensor in tensors.values()],
        )
    state = _directory_state(directory) if keep else None
    others = list(state.all_model_checkpoint_paths) if state else []
    remembered = [os.path.join(directory, os.path.basename(other)) for other in others]
    remembered = [other for other in remembered if other != path] + [path]
    old = remembered[: -(keep or 1)]
    names = [os.path.basename(other) for other in remembered[len(old) :]]
    _remember(directory, names)
    for prefix in old:
        for file in glob.glob(f"{glob.escape(prefix)}.*"):
            os.remove(file)
    return path


def _remember(directory: str, names: list[str]) -> None:
    """Writes the file that lists a directory's checkpoints, whole or not at all."""
    # As TensorFlow 1 does; what does it in TensorFlow 2 warns of its removal.
    lines = [f"model_checkpoint_path: {json.dumps(names[-1], ensure_ascii=False)}"]
    for name in names:
        quoted = json.dumps(name, ensure_ascii=False)
        lines.append(f"all_model_checkpoint_paths: {quoted}")
    content = "\n".join(lines) + "\n"
    write_bytes(os.path.join(directory, "checkpoint"), content.encode())
