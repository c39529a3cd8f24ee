"""Times adaptive networks and perforated layers against the ordinary ones.

    python -m experiments.benchmarks.network --image_size=600x1000 \\
        --units_per_block=2,3.2,11
    python -m experiments.benchmarks.network --layer=3x3,256,256,38x63 \\
        --active=0.1,0.5,1

All sides run in one process, by turns, with the same number of threads, and are told
apart by their medians. Halting is imposed: heads run as usual, then a pattern decides
where they halt, so that no trained network is needed. Networks do as many blocks as
--units_per_block has numbers; fewer than all give the features a detector would take.

Times are told beside what the machine can do at most, by `custom_ops.peak`: a side's
share is that of its operations per second, in the type of number it multiplies.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import custom_ops
from custom_ops import build, peak
from experiments.benchmarks import in_openvino, layers
from experiments.benchmarks.profiles import print_profile, profile
from experiments.benchmarks.tools import (
    impose_halting,
    parse_numbers,
    parse_sides,
    time_by_turns,
)
from experiments.common import memory, programs
from sact_tf.networks.options import NetworkOptions
from sact_tf.optional import MissingPackageError

FLAGS = flags.FLAGS

_DEFAULT_SIDES = ("dense", "masked", "native", "twin", "tiled")
SIDES = (*_DEFAULT_SIDES, "native_bf16", "xla", "openvino", "openvino_bf16")
_DENSE = ("dense", "xla", "openvino", "openvino_bf16")

flags.DEFINE_enum("network", "imagenet", list(programs.FAMILIES), "Family of networks.")
flags.DEFINE_string("model", "101", "Residual units per block, as in the networks.")
flags.DEFINE_enum("model_type", "sact", ["act", "sact"], "Adaptive network.")
flags.DEFINE_string("image_size", "224x224", "HEIGHTxWIDTH of the images.")
flags.DEFINE_integer("batch_size", 1, "Images per call.", lower_bound=1)
flags.DEFINE_list(
    "units_per_block",
    ["2.3", "3.8", "13.1", "2.7"],
    "Mean residual units run at a position, for each block to run.",
)
flags.DEFINE_enum(
    "pattern",
    "blob",
    ["blob", "random", "full", "empty"],
    "Which positions run more units: those near the centre of a blob, random ones, all "
    "positions run all units, all positions run one.",
)
flags.DEFINE_list(
    "sides",
    list(_DEFAULT_SIDES),
    "What to time: dense (the ordinary network), masked, native and twin (perforated "
    "execution by compiled kernels and by TensorFlow operations), tiled (positions "
    "halt in tiles), native_bf16 (native, multiplying in bfloat16), xla (dense, "
    "compiled by XLA), openvino and openvino_bf16 (dense, by OpenVINO). What cannot "
    "run here is left out, and said.",
)
flags.DEFINE_integer(
    "threads",
    None,
    "Threads of every side; by default TF_NUM_INTRAOP_THREADS, or all processors.",
    lower_bound=1,
)
flags.DEFINE_bool("by_block", False, "Time every block by itself, 1 with the stem.")
flags.DEFINE_integer("tile_size", 8, "Side of the tiles of `tiled`.", lower_bound=2)
flags.DEFINE_integer("repetitions", 15, "Timed calls of each side.", lower_bound=1)
flags.DEFINE_enum(
    "precision",
    "tf32",
    ["float32", "tf32", "bfloat16"],
    "float32; the same where a GPU may round factors (tf32, TensorFlow's default); or "
    "bfloat16 with float32 weights.",
)
flags.DEFINE_bool("memory", False, "Also measure peak memory, each side by itself.")
flags.DEFINE_string(
    "layer", None, "KHxKW,IN,OUT,HEIGHTxWIDTH: time this convolution, not a network."
)
flags.DEFINE_list("active", ["0.1", "0.25", "0.5", "0.75", "1"], "Active fractions.")
flags.DEFINE_string(
    "profile", None, "Print where the time of this side of --sides goes, and no more."
)
flags.DEFINE_bool("json", False, "Print JSON lines, not a table.")


class LeftOut(Exception):
    """A side cannot run here; says why."""


class Side(NamedTuple):
    """What is timed.

    Attributes:
        run: Runs it, and waits for the result.
        flops: Returns the operations per image that this takes.
    """

    run: Callable[[], object]
    flops: Callable[[], float]


def num_threads() -> int:
    """Returns how many threads every side gets."""
    if FLAGS.threads:
        return FLAGS.threads
    chosen = int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0)
    return (
        tf.config.threading.get_intra_op_parallelism_threads()
        or chosen
        or peak.num_processors()
    )


def _set_threads() -> None:
    if FLAGS.threads:
        tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)


def multiplies_in(side: str) -> str:
    """Returns the type of number that a side multiplies."""
    is_half = side.endswith("_bf16") or FLAGS.precision == "bfloat16"
    return "bfloat16" if is_half else "float32"


def make_model(side: str) -> keras.Model:
    """Builds the network of a side, with halting imposed.

    Raises:
        LeftOut: There is none here.
    """
    means = parse_numbers("units_per_block", FLAGS.units_per_block, 1, 1000)
    tf.config.experimental.enable_tensor_float_32_execution(FLAGS.precision == "tf32")
    is_mixed = FLAGS.precision == "bfloat16"
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if is_mixed else "float32")
    if side == "tiled":
        if FLAGS.model_type != "sact":
            raise ValueError(
                f"--sides: tiled needs --model_type=sact; got {FLAGS.model_type}"
            )
        options = dict(execution="tiled", tile_size=FLAGS.tile_size)
    else:
        masked = side in (*_DENSE, "masked")
        options = dict(execution="masked" if masked else "perforated")
    if side == "native_bf16":
        if "precision" not in {f.name for f in dataclasses.fields(NetworkOptions)}:
            raise LeftOut("networks have no option `precision`")
        options["precision"] = "bfloat16"
    model_type = "vanilla" if side in _DENSE else FLAGS.model_type
    keras.utils.set_random_seed(0)
    model = programs.FAMILIES[FLAGS.network](FLAGS.model, model_type, **options)
    if len(means) > len(model.blocks):
        raise ValueError(
            f"--units_per_block: at most {len(model.blocks)} numbers, one per block; "
            f"got {','.join(FLAGS.units_per_block)}"
        )
    tile_size = FLAGS.tile_size if side == "tiled" else 1
    impose_halting(model.blocks, means, FLAGS.pattern, tile_size)
    return model


def make_images() -> tf.Tensor:
    """Returns random images of the size and number that flags say."""
    height, width = parse_sides("image_size", FLAGS.image_size)
    return tf.random.stateless_uniform([FLAGS.batch_size, height, width, 3], [1, 2])


def _compiled(side: str, function: Callable):
    """Returns a function of a tensor as a side runs it in TensorFlow."""
    implementation = "tensorflow" if side == "twin" else "auto"

    @tf.function(jit_compile=side == "xla" or None)
    def run(x):
        with custom_ops.default_implementation(implementation):
            return function(x)

    return run


def make_side(side: str) -> Side:
    """Builds one side that runs a network whole.

    Raises:
        LeftOut: It cannot run here.
    """
    model, images = make_model(side), make_images()
    blocks = model.block_scopes[: len(FLAGS.units_per_block)]

    def network(images):
        logits, end_points = model.with_end_points(images, training=False)
        whole = len(blocks) == len(model.blocks)
        return logits if whole else end_points[blocks[-1]]

    @tf.function
    def count(images):
        end_points = model.with_end_points(images, training=False)[1]
        return sum(end_points[f"{block}/flops"] for block in blocks)

    def flops():
        return float(np.mean(count(images)))

    if side.startswith("openvino"):
        return Side(_run_by_openvino(side, network, model, images), flops)
    compiled = _compiled(side, network)
    return Side(lambda: compiled(images).numpy(), flops)


def _run_by_openvino(side, function, model, images):
    precision = multiplies_in(side)
    try:
        return in_openvino.runner(
            function, model.variables, images, precision, num_threads()
        )
    except (MissingPackageError, ValueError) as error:
        raise LeftOut(str(error)) from error


def make_blocks(side: str) -> dict[str, Side]:
    """Builds the blocks of one side, each by itself on what it is given by the others.

    The first comes with the stem.

    Raises:
        LeftOut: They cannot run here.
    """
    model, x = make_model(side), make_images()
    sides = {}
    for b, block in enumerate(model.blocks[: len(FLAGS.units_per_block)]):

        def output(x, b=b, block=block):
            if b == 0:
                return model.run_blocks(x, False, num_blocks=1)[0]
            return block(x, training=False)

        @tf.function
        def count(x, b=b, block=block):
            if b == 0:
                key = f"{block.name}/flops"
                return model.run_blocks(x, False, True, num_blocks=1)[1][key]
            return block(x, training=False, return_end_points=True)[1]["flops"]

        if side.startswith("openvino"):
            run = _run_by_openvino(side, output, model, x)
        else:
            compiled = _compiled(side, output)

            # One element waits for all of them.
            def run(compiled=compiled, x=x):
                return compiled(x)[0, 0, 0, 0].numpy()

        sides[block.name] = Side(run, lambda x=x, count=count: np.mean(count(x)))
        x = tf.function(output)(x)
    return sides


def make_sides(make: Callable[[str], object]) -> dict[str, object]:
    """Makes the sides of --sides by a function; says which cannot run here."""
    unknown = set(FLAGS.sides) - set(SIDES)
    if unknown or "dense" not in FLAGS.sides:
        raise ValueError(
            f"--sides: expected dense and any of {', '.join(SIDES[1:])}; got "
            f"{','.join(FLAGS.sides)}"
        )
    sides = {}
    for side in FLAGS.sides:
        try:
            sides[side] = make(side)
        except LeftOut as reason:
            print(f"--sides: {side} is left out: {reason}", file=sys.stderr)
    return sides


def measure_peak() -> dict[str, float]:
    """Measures and prints what the machine can do at most, by type of number."""
    try:
        speeds = peak.measure(num_threads())
    except build.BuildError as error:
        print(f"no share of the machine's peak is told: {error}", file=sys.stderr)
        return {}
    print(peak.describe(num_threads(), speeds), file=sys.stderr)
    best: dict[str, float] = {}
    for kind, speed in speeds.items():
        number = kind.partition(" ")[0]
        best[number] = max(speed, best.get(number, 0.0))
    return best


def _speed(flops: float, seconds: float, number: str, peaks: dict) -> dict[str, float]:
    """Returns GFLOP/s, and which share of the peak that is where this is known."""
    speed = flops / seconds
    row = {"gflops_per_second": speed / 1e9}
    return {**row, "share_of_peak": speed / peaks[number]} if number in peaks else row


def _prepare(values: dict, side: str):
    """Builds a side in a process of its own; returns the function that runs it."""
    FLAGS(["benchmark"])
    for name, value in values.items():
        FLAGS[name].value = value
    _set_threads()
    return make_side(side).run


def peak_memory(side: str) -> float:
    """Returns how much memory the runs of a side take beyond its weights, in MB."""
    names = ("network", "model", "model_type", "image_size", "batch_size", "pattern")
    names += ("units_per_block", "tile_size", "precision", "threads")
    values = {name: FLAGS[name].value for name in names}
    return memory.peak_memory(_prepare, values, side)


def _shared() -> dict[str, object]:
    """What all rows about a network begin with."""
    return {
        "network": f"{FLAGS.network} {FLAGS.model}",
        "image_size": FLAGS.image_size,
        "batch_size": FLAGS.batch_size,
        "units_per_block": [float(mean) for mean in FLAGS.units_per_block],
        "pattern": FLAGS.pattern,
        "threads": num_threads(),
        "processor": peak.processor(),
    }


def network_rows(peaks: dict[str, float]) -> list[dict]:
    """Times the sides of --sides; one row each."""
    sides = make_sides(make_side)
    seconds = time_by_turns(
        {name: side.run for name, side in sides.items()}, FLAGS.repetitions
    )
    flops = {name: side.flops() for name, side in sides.items()}
    rows = []
    for name in sides:
        relative_flops = flops[name] / flops["dense"]
        ratio = seconds[name] / seconds["dense"]
        done = flops[name] * FLAGS.batch_size
        row = {
            **_shared(),
            "side": name,
            "relative_flops": relative_flops,
            "seconds": seconds[name],
            "relative_time": ratio,
            "realised_speed_up": relative_flops / ratio,
            **_speed(done, seconds[name], multiplies_in(name), peaks),
        }
        if FLAGS.memory:
            row["peak_memory_mb"] = peak_memory(name)
        rows.append(row)
    return rows


def block_rows(peaks: dict[str, float]) -> list[dict]:
    """Times every block of the sides of --sides; a row for each block and side."""
    sides = make_sides(make_blocks)
    seconds = time_by_turns(
        {
            (block, name): part.run
            for name, parts in sides.items()
            for block, part in parts.items()
        },
        FLAGS.repetitions,
    )
    rows = []
    for block, name in sorted(seconds, key=lambda key: key[0]):
        flops, dense = (sides[s][block].flops() for s in (name, "dense"))
        ratio = seconds[block, name] / seconds[block, "dense"]
        done = flops * FLAGS.batch_size
        rows.append(
            {
                **_shared(),
                "block": block,
                "side": name,
                "relative_flops": flops / dense,
                "seconds": seconds[block, name],
                "relative_time": ratio,
                "realised_speed_up": flops / dense / ratio,
                **_speed(done, seconds[block, name], multiplies_in(name), peaks),
            }
        )
    return rows


_NAMES = ("block", "side")
_MEASURED = (
    *("relative_flops", "seconds", "relative_time", "realised_speed_up"),
    *("gflops_per_second", "share_of_peak", "peak_memory_mb"),
)


def print_rows(rows: list[dict]) -> None:
    """Prints a table under one line that says what all its rows share."""
    columns = [name for name in (*_NAMES, *_MEASURED) if name in rows[0]]
    print(*(f"{key}={value}" for key, value in rows[0].items() if key not in columns))
    print(*(f"{column:>18}" for column in columns))
    for row in rows:
        texts = [
            row[column] if column in _NAMES else f"{row[column]:.4g}"
            for column in columns
        ]
        print(*(f"{text:>18}" for text in texts))


def profile_rows() -> list[dict]:
    """Profiles the side of --profile."""
    if FLAGS.profile not in SIDES:
        raise ValueError(
            f"--profile: must be one of {', '.join(SIDES)}; got {FLAGS.profile}"
        )
    return profile(make_side(FLAGS.profile).run, FLAGS.repetitions)


def main() -> None:
    """Runs what the flags say."""
    if FLAGS.profile and not FLAGS.json:
        print_profile(profile_rows())
        return
    _set_threads()
    if FLAGS.profile:
        rows = profile_rows()
    elif FLAGS.layer:
        rows = layers.layer_rows()
    else:
        rows = (block_rows if FLAGS.by_block else network_rows)(measure_peak())
    if FLAGS.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print_rows(rows)


if __name__ == "__main__":
    programs.run(main)
