"""What the programs share: one line for an error users can mend, checked flags."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

import tensorflow as tf
import tf_keras as keras
from absl import app, flags, logging

import sact_tf
from experiments.common import iterative, numbers, run_record
from experiments.common.refusals import explain, explain_parsing
from sact_tf import halting, optional
from sact_tf.checkpoint_files import open_checkpoint
from sact_tf.data.examples import DataError
from sact_tf.halting import probabilistic
from sact_tf.networks.iterative_block import VARIANTS
from sact_tf.networks.options import NetworkOptions
from sact_tf.optional import MissingPackageError
from sact_tf.pretrained import formats
from sact_tf.run_control import DirectoryInUseError
from sact_tf.training import TrainingError, keep_freed_memory

# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()

FAMILIES = {
    "imagenet": sact_tf.imagenet_resnet,
    "cifar": sact_tf.cifar_resnet,
    "cifar_bottleneck": sact_tf.cifar_bottleneck_resnet,
}
"""Networks by the name of their family."""

# The library raises these with a message that names argument or file, value and what is
# accepted.
USER_ERRORS = (
    ValueError,
    OSError,
    TrainingError,
    DirectoryInUseError,
    MissingPackageError,
)


def run(main: Callable[..., None], max_arguments: int = 0) -> None:
    """Parses flags and runs `main`; errors users can mend end it with one message.

    Args:
        main: The program; called with the words that are no flags.
        max_arguments: How many of them it takes.
    """
    keep_freed_memory()

    def checked_main(argv: Sequence[str]):
        if not flags.FLAGS["verbosity"].present:
            tf.get_logger().setLevel("ERROR")
            logging.set_verbosity(logging.ERROR)
        words = argv[1:]
        if len(words) > max_arguments:
            word = words[max_arguments]
            raise app.UsageError(f"unknown argument {word!r}; flags start with --")
        run_checked(lambda: main(*words))

    app.run(checked_main, flags_parser=parse_flags)


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags; what is wrong with them ends the program with one line.

    Returns:
        What is no flag, the program's name first.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _end(f"{explain_parsing(error)} (--help lists all flags)", argv[0])


def run_checked(main: Callable[[], None]) -> None:
    """Runs `main` once the numbers of all flags are such; see `run`."""
    try:
        numbers.check()
        with run_record.kept():
            main()
    except USER_ERRORS as error:
        _end(explain(error), sys.argv[0])


def need(module: str) -> None:
    """Ends a program that can do nothing without a package which is not installed."""
    try:
        optional.load(module)
    except MissingPackageError as error:
        _end(str(error), sys.argv[0])


def _end(message: str, program: str) -> NoReturn:
    """Ends a program with one line about what went wrong."""
    sys.exit(f"{os.path.basename(program)}: error: {message}")


_OPTIONS = {field.name: field for field in dataclasses.fields(NetworkOptions)}


def define_option(
    name: str,
    default=None,
    description: str | None = None,
    others: Mapping[str, str] | None = None,
) -> None:
    """Defines the flag of one of `NetworkOptions`, by its name.

    Args:
        name: Of the option.
        default: Of the flag; None: the option's own.
        description: For --help; None: the option's own.
        others: Of --model_type: further networks by name, and what they are.
    """
    option = _OPTIONS[name]
    known = option.metadata
    default = option.default if default is None else default
    description = description or known["description"]
    if name == "model_type":
        kinds = {k: halting.model_type(k).description for k in halting.model_types()}
        kinds.update(others or {})
        each = (f"{kind} ({text})" for kind, text in kinds.items())
        flags.DEFINE_enum(name, default, list(kinds), f"{', '.join(each)}.")
        _define_rule_flags()
    elif "choices" in known:
        flags.DEFINE_enum(name, default, known["choices"], description)
    elif isinstance(option.default, float):
        flags.DEFINE_float(name, default, description, known.get("lower_bound"))
    elif isinstance(option.default, int):
        flags.DEFINE_integer(name, default, description, known["lower_bound"])
    else:
        flags.DEFINE_string(name, default, description)


_RULE_OPTIONS = ("estimator", "temperature", "test_mode", "mask_state", "baseline")


def _define_rule_flags() -> None:
    """Defines the flags of PACT, by default as the rule has it."""
    flags.DEFINE_enum(
        "estimator",
        None,
        probabilistic.ESTIMATORS,
        "Of PACT's gradients: relaxation (the default), or reinforce.",
    )
    flags.DEFINE_float(
        "temperature", None, "Of PACT's relaxation; by default 2/3.", lower_bound=0.0
    )
    flags.DEFINE_enum(
        "test_mode",
        None,
        probabilistic.MODES,
        "How PACT and PonderNet stop in inference; by default thresholded (PACT) or "
        "discrete (PonderNet, which has no relaxed mode).",
    )
    flags.DEFINE_bool(
        "mask_state",
        None,
        "Whether PACT's relaxed units also compute on attenuated residuals; by default "
        "they do.",
    )
    flags.DEFINE_enum(
        "baseline",
        None,
        probabilistic.BASELINES,
        "Of --estimator=reinforce: average (the default) of past rewards, or linear in "
        "the image.",
    )
    group_grid = _OPTIONS["group_grid"].metadata
    flags.DEFINE_integer("group_grid", None, group_grid["description"], 1)


def network_options(**others) -> dict[str, object]:
    """Returns the network options that this program's flags say.

    Args:
        **others: Options that take the place of flags, or that no flag says.
    """
    names = (*_OPTIONS, *_RULE_OPTIONS)
    defined = {name: flags.FLAGS[name].value for name in names if name in flags.FLAGS}
    given = {name: value for name, value in defined.items() if value is not None}
    options = {**given, **others}
    # Or somebody would believe to have measured what has not run.
    execution, precision = options.get("execution"), options.get("precision")
    if precision == "bfloat16" and execution != "perforated":
        raise ValueError(
            f"--precision={precision}: needs --execution=perforated; got "
            f"--execution={execution}"
        )
    return options


def define_model_type(default: str = "vanilla", with_iterative: bool = False) -> None:
    """Defines --model_type.

    Args:
        default: Of it.
        with_iterative: Whether it may be that of an iterative network; their flags are
            then defined too.
    """
    define_option("model_type", default, others=VARIANTS if with_iterative else None)
    if with_iterative:
        iterative.define_flags()


def define_execution_flags(description: str | None = None) -> None:
    """Defines --execution and --precision.

    Args:
        description: Of --execution; None: the option's own.
    """
    define_option("execution", description=description)
    define_option("precision")


def define_forms() -> None:
    """Defines --stem_pool and --downsample, of ImageNet networks."""
    define_option("stem_pool")
    define_option("downsample")


def define_network_flags(checkpoint_dir: bool = True) -> None:
    """Defines --network, --model, --num_classes, --base_channels, --tile_size, forms.

    Args:
        checkpoint_dir: Also --checkpoint_dir.
    """
    flags.DEFINE_enum("network", "imagenet", list(FAMILIES), "Family of networks.")
    define_option(
        "model", "101", "Residual units per block, as in the training programs."
    )
    define_option("num_classes")
    flags.DEFINE_integer(
        "base_channels",
        None,
        "Channels of the first block; by default 64, or 16 (cifar).",
        lower_bound=1,
    )
    define_option("tile_size")
    define_forms()
    if checkpoint_dir:
        flags.DEFINE_string(
            "checkpoint_dir",
            "",
            "Directory, its newest checkpoint is taken, or a checkpoint.",
        )


def make_network(**options) -> keras.Model:
    """Builds the network of `define_network_flags`, with fresh weights.

    Args:
        **options: As of `network_options`.
    """
    kind = options.get("model_type") or flags.FLAGS.model_type
    if kind in VARIANTS:
        return iterative.make_network(**options)
    if "max_iterations" in flags.FLAGS:
        iterative.check()
    options = network_options(**options)
    return FAMILIES[flags.FLAGS.network](**options)


def define_export_flags() -> None:
    """Defines --output_dir and --implementation, of a SavedModel."""
    flags.DEFINE_string("output_dir", "", "Directory of the SavedModel; must be empty.")
    flags.DEFINE_enum(
        "implementation",
        "tensorflow",
        ["tensorflow", "native"],
        "Of perforated execution: plain TensorFlow operations, or compiled kernels.",
    )


def empty_output_dir() -> str:
    """Returns --output_dir, which it makes, for what must not lie beside other files.

    Raises:
        OSError: It cannot be written to.
        ValueError: It is not given, or not empty.
    """
    require("output_dir")
    output_dir = make_directory("output_dir", flags.FLAGS.output_dir)
    if os.listdir(output_dir):
        raise ValueError(f"--output_dir={output_dir}: must be empty")
    return output_dir


def check_group_grid(network: sact_tf.Network, side: int) -> sact_tf.Network:
    """Returns a network, whose groups must divide its maps of images of this side.

    Raises:
        ValueError: They do not; names the flag.
    """
    grid = network.options.group_grid
    maps = [-(-side // spec.stride) for spec in network.block_specs]
    if grid is not None and any(size % grid for size in maps):
        raise ValueError(
            f"--group_grid={grid}: must divide the maps of all blocks, whose sides are "
            f"{', '.join(map(str, maps))}"
        )
    return network


@contextlib.contextmanager
def naming_dataset_dir() -> Iterator[None]:
    """Puts --dataset_dir before what goes wrong with a data set in a `with` block."""
    try:
        yield
    except (DataError, FileNotFoundError) as error:
        directory = flags.FLAGS.dataset_dir or "(default)"
        raise DataError(f"--dataset_dir={directory}: {error}") from error


def define_log_flags(
    train_log_dir: str,
    save_summaries_secs: float = 600,
    save_interval_secs: float = 600,
) -> None:
    """Defines the flags of these names, with these defaults."""
    flags.DEFINE_string(
        "train_log_dir",
        train_log_dir,
        "Directory for checkpoints and TensorBoard summaries of training.",
    )
    flags.DEFINE_float(
        "save_summaries_secs",
        save_summaries_secs,
        "Seconds between training summaries.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "save_interval_secs",
        save_interval_secs,
        "Seconds between checkpoints.",
        lower_bound=0,
    )


def define_finetune_flags(description: str) -> None:
    """Defines --finetune_path and --finetune_without_classifier.

    Args:
        description: What of a network is loaded, beside its weights.
    """
    flags.DEFINE_string(
        "finetune_path",
        "",
        f"Weights to start from: {formats.KNOWN}. {description}",
    )
    flags.DEFINE_bool(
        "finetune_without_classifier",
        False,
        "Do not load the classifier of --finetune_path, for images of other classes.",
    )


def load_weights(model: keras.Model, path: str, **options) -> Sequence[str]:
    """Loads --finetune_path, and prints what was changed on the way.

    Args:
        model: The network.
        path: Of the weights.
        **options: Of `sact_tf.load_pretrained`.

    Returns:
        The names of the variables loaded.
    """
    without = flags.FLAGS.finetune_without_classifier
    try:
        loaded = sact_tf.load_pretrained(
            model, path, without_classifier=without, **options
        )
    except ValueError as error:
        if "without_classifier=True" not in str(error):
            raise
        raise ValueError(f"{error}: --finetune_without_classifier") from error
    for note in loaded.notes:
        print(f"{path}: {note}")
    return loaded.variables


_HEADS = "/halting_proba/"


def _has_heads(path: str) -> bool:
    """Whether a file of weights is a TF-Slim checkpoint with halting heads."""
    try:
        _, reader = open_checkpoint(path)
    except FileNotFoundError:
        return False
    return any(_HEADS in name for name in reader.get_variable_to_shape_map())


def start_from_finetune_path(
    log_dir: str, load: Callable[[str], Sequence[str]]
) -> None:
    """Loads --finetune_path, unless a run in the directory is to go on.

    Args:
        log_dir: Directory of the run's checkpoints.
        load: Loads a checkpoint, and returns the names of its variables.
    """
    path = flags.FLAGS.finetune_path
    if not path or sact_tf.newest_checkpoint(log_dir) is not None:
        return
    loaded = load(os.path.expanduser(path))
    print(f"Starting from {len(loaded)} variables of {path}")
    if _has_heads(os.path.expanduser(path)):
        are_loaded = any(_HEADS in name for name in loaded)
        print(
            "Its halting heads are "
            + (
                "taken: they mean what they were trained for if that was with the same "
                "rule (a score that SACT adds up is PACT's chance to stop)"
                if are_loaded
                else "not taken, and start fresh"
            )
        )


_TENSORFLOW_1 = "it configured TensorFlow 1"
_UNUSED_FLAGS = {
    "master": ("", _TENSORFLOW_1),
    "ps_tasks": (0, _TENSORFLOW_1),
    "task": (0, _TENSORFLOW_1),
    "startup_delay_steps": (15, _TENSORFLOW_1),
    "worker_replicas": (1, _TENSORFLOW_1),
    "replicas_to_aggregate": (1, _TENSORFLOW_1),
    "moving_average_decay": (0.9999, "the weights themselves are kept and evaluated"),
}
_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
}


def define_target() -> None:
    """Defines --target_relative_flops."""
    flags.DEFINE_float(
        "target_relative_flops",
        None,
        "Steer tau so that the network takes this part of the operations that it would "
        "take if all its units ran; --tau, such as 0.01 and at most 0.1, says how "
        "strongly.",
    )


def target() -> sact_tf.TargetFlops | None:
    """Returns what --target_relative_flops asks for; None: nothing."""
    relative = flags.FLAGS.target_relative_flops
    return None if relative is None else sact_tf.TargetFlops(relative)


def print_target(reached: sact_tf.TargetFlops | None) -> None:
    """Prints what became of --target_relative_flops."""
    if reached is not None:
        print(
            f"Relative operations of the last steps: {reached.last:.4f}, target "
            f"{reached.relative:g}; tau times {float(reached.factor.numpy()):.4g}"
        )


def define_unused_flags(*names: str) -> None:
    """Defines flags of the original that have no effect here."""
    for name in names:
        default, reason = _UNUSED_FLAGS[name]
        _DEFINE[type(default)](name, default, f"Has no effect: {reason}.")


def note_unused_flags() -> None:
    """Says so if one of these flags is set."""
    for name, (default, reason) in _UNUSED_FLAGS.items():
        if name in flags.FLAGS and flags.FLAGS[name].value != default:
            print(f"Note: --{name} has no effect: {reason}.")


def require(*names: str) -> None:
    """Raises ValueError if one of these flags is not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise ValueError(f"--{name}: must be given ({flags.FLAGS[name].help})")


def named_files(flag: str) -> list[str]:
    """Returns the files that a flag's pattern matches, sorted.

    Raises:
        FileNotFoundError: There are none.
        ValueError: Two have the same name but for the extension; what is written of
            them would take that name.
    """
    pattern = os.path.expanduser(flags.FLAGS[flag].value)
    paths = sorted(tf.io.gfile.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"--{flag}={pattern}: matches no file")
    names = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(
            f"--{flag}={pattern}: matches several files of the same name, such as "
            f"{max(names, key=names.count)}"
        )
    return paths


def make_directory(flag: str, path: str) -> str:
    """Creates the directory a flag names, and checks that files can be written there.

    Raises:
        OSError: Naming the flag, where that fails.
    """
    path = os.path.expanduser(path)
    probe = os.path.join(path, ".writable")
    try:
        os.makedirs(path, exist_ok=True)
        with open(probe, "w"):
            pass
        os.remove(probe)
    except OSError as error:
        raise OSError(
            f"--{flag}={path}: cannot be written to ({error.strerror}); "
            "name a directory that can"
        ) from error
    return path
