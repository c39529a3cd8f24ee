"""Times adaptive networks and perforated layers against the ordinary ones.

    python -m experiments.benchmarks.network --image_size=600x1000 \\
        --units_per_block=2,3.2,11
    python -m experiments.benchmarks.network --layer=3x3,256,256,38x63 \\
        --active=0.1,0.5,1

All sides run in one process, by turns, and are told apart by their medians. Halting is
imposed: heads run as usual, then a pattern decides where they halt, so that no trained
network is needed. Networks do as many blocks as --units_per_block has numbers; fewer
than all give the features a detector would take.
"""

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import custom_ops
from experiments.benchmarks.profiles import print_profile, profile
from experiments.benchmarks.tools import (
    impose_halting,
    parse_numbers,
    parse_sides,
    ranks,
    time_by_turns,
)
from experiments.common import programs

FLAGS = flags.FLAGS

SIDES = ("dense", "masked", "native", "twin", "tiled", "xla")
_LAYER_RUNS = 5

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
    list(SIDES[:-1]),
    "What to time: dense (the ordinary network), masked, native and twin (perforated "
    "execution by compiled kernels and by TensorFlow operations), tiled (positions "
    "halt in tiles, which are gathered whole), xla (dense, compiled by XLA).",
)
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


def make_side(side: str):
    """Builds one side; returns a function that runs it, and one that counts FLOPs."""
    means = parse_numbers("units_per_block", FLAGS.units_per_block, 1, 1000)
    height, width = parse_sides("image_size", FLAGS.image_size)
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
        masked = side in ("dense", "masked", "xla")
        options = dict(execution="masked" if masked else "perforated")
    model_type = "vanilla" if side in ("dense", "xla") else FLAGS.model_type
    keras.utils.set_random_seed(0)
    model = programs.FAMILIES[FLAGS.network](FLAGS.model, model_type, **options)
    if len(means) > len(model.blocks):
        raise ValueError(
            f"--units_per_block: at most {len(model.blocks)} numbers, one per block; "
            f"got {','.join(FLAGS.units_per_block)}"
        )
    tile_size = FLAGS.tile_size if side == "tiled" else 1
    impose_halting(model.blocks, means, FLAGS.pattern, tile_size)
    images = tf.random.stateless_uniform([FLAGS.batch_size, height, width, 3], [1, 2])
    blocks = model.block_scopes[: len(means)]
    implementation = "tensorflow" if side == "twin" else "auto"

    @tf.function(jit_compile=side == "xla" or None)
    def network(images):
        with custom_ops.default_implementation(implementation):
            logits, end_points = model.with_end_points(images, training=False)
        whole = len(blocks) == len(model.blocks)
        return logits if whole else end_points[blocks[-1]]

    @tf.function
    def count(images):
        end_points = model.with_end_points(images, training=False)[1]
        return sum(end_points[f"{block}/flops"] for block in blocks)

    return lambda: network(images).numpy(), lambda: float(np.mean(count(images)))


def _resident(key: str) -> float:
    """Reads VmHWM or VmRSS, in MB."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(key))
    return int(line.split()[1]) / 1024


def _measure_memory(values: dict, side: str, result) -> None:
    FLAGS(["benchmark"])
    for name, value in values.items():
        FLAGS[name].value = value
    run, _ = make_side(side)
    with open("/proc/self/clear_refs", "w") as reset:  # forgets the peak so far
        reset.write("5")
    before = _resident("VmRSS")
    for _ in range(3):
        run()
    result.put(_resident("VmHWM") - before)


def peak_memory(side: str) -> float:
    """Returns how much memory the runs of a side take beyond its weights, in MB."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    names = ("network", "model", "model_type", "image_size", "batch_size", "pattern")
    names += ("units_per_block", "tile_size", "precision")
    values = {name: FLAGS[name].value for name in names}
    process = context.Process(target=_measure_memory, args=(values, side, result))
    process.start()
    peak = result.get()
    process.join()
    return peak


def network_rows() -> list[dict]:
    """Times the sides of --sides; one row each, the dense one first."""
    unknown = set(FLAGS.sides) - set(SIDES)
    if unknown or "dense" not in FLAGS.sides:
        raise ValueError(
            f"--sides: expected dense and any of {', '.join(SIDES[1:])}; got "
            f"{','.join(FLAGS.sides)}"
        )
    sides = {side: make_side(side) for side in FLAGS.sides}
    seconds = time_by_turns(
        {s: call for s, (call, _) in sides.items()}, FLAGS.repetitions
    )
    rows = []
    flops = {side: count() for side, (_, count) in sides.items()}
    for side in sides:
        relative_flops = flops[side] / flops["dense"]
        ratio = seconds[side] / seconds["dense"]
        row = {
            "network": f"{FLAGS.network} {FLAGS.model}",
            "image_size": FLAGS.image_size,
            "batch_size": FLAGS.batch_size,
            "units_per_block": [float(mean) for mean in FLAGS.units_per_block],
            "pattern": FLAGS.pattern,
            "side": side,
            "relative_flops": relative_flops,
            "seconds": seconds[side],
            "relative_time": ratio,
            "realised_speed_up": relative_flops / ratio,
        }
        if FLAGS.memory:
            row["peak_memory_mb"] = peak_memory(side)
        rows.append(row)
    return rows


def layer_rows() -> list[dict]:
    """Times the convolution of --layer at the fractions of --active."""
    parts = FLAGS.layer.split(",")
    if len(parts) != 4 or not (parts[1].isdigit() and parts[2].isdigit()):
        raise ValueError(
            "--layer: expected KHxKW,IN,OUT,HEIGHTxWIDTH such as 3x3,256,256,38x63; "
            f"got {FLAGS.layer!r}"
        )
    kernel = parse_sides("layer", parts[0])
    height, width = parse_sides("layer", parts[3])
    fractions = parse_numbers("active", FLAGS.active, 0, 1)
    inputs, outputs = int(parts[1]), int(parts[2])
    x = tf.random.normal([FLAGS.batch_size, height, width, inputs])
    filters = tf.random.normal([*kernel, inputs, outputs])
    order = tf.constant(ranks(height, width, FLAGS.pattern))

    def in_loop(layer):
        """Runs a layer several times in a graph, as a network does, not in Python."""

        @tf.function
        def run(mask):
            def body(k, total):
                return k + 1, total + layer(mask)[0, 0, 0, 0]

            start = (tf.constant(0), tf.constant(0.0))
            return tf.while_loop(
                lambda k, _: k < _LAYER_RUNS, body, start, parallel_iterations=1
            )

        return run

    dense = in_loop(lambda mask: tf.nn.conv2d(x, filters, 1, "SAME"))
    calls = {("dense", 1.0): lambda: dense(order < 1.0)}
    for side, implementation in (("native", "auto"), ("twin", "tensorflow")):
        perforated = in_loop(
            lambda mask, implementation=implementation: custom_ops.perforated_conv2d(
                x, filters, mask, implementation=implementation
            )
        )
        for fraction in fractions if side in FLAGS.sides else []:
            mask = order < fraction
            calls[side, fraction] = lambda run=perforated, mask=mask: run(mask)
    seconds = {
        key: time_ / _LAYER_RUNS
        for key, time_ in time_by_turns(calls, FLAGS.repetitions).items()
    }
    rows = []
    for (side, fraction), time_ in seconds.items():
        active = float(np.mean(order < fraction))
        ratio = time_ / seconds["dense", 1.0]
        rows.append(
            {
                "layer": FLAGS.layer,
                "batch_size": FLAGS.batch_size,
                "pattern": FLAGS.pattern,
                "side": side,
                "relative_flops": active,
                "seconds": time_,
                "relative_time": ratio,
                "realised_speed_up": active / ratio,
            }
        )
    return rows


def print_rows(rows: list[dict]) -> None:
    """Prints a table under one line that says what all its rows share."""
    columns = (
        "side",
        "relative_flops",
        "seconds",
        "relative_time",
        "realised_speed_up",
    )
    columns += ("peak_memory_mb",) if "peak_memory_mb" in rows[0] else ()
    print(*(f"{key}={value}" for key, value in rows[0].items() if key not in columns))
    print(*(f"{column:>18}" for column in columns))
    for row in rows:
        texts = [
            row[column] if column == "side" else f"{row[column]:.4g}"
            for column in columns
        ]
        print(*(f"{text:>18}" for text in texts))


def profile_rows() -> list[dict]:
    """Profiles the side of --profile."""
    if FLAGS.profile not in SIDES:
        raise ValueError(
            f"--profile: must be one of {', '.join(SIDES)}; got {FLAGS.profile}"
        )
    run, _ = make_side(FLAGS.profile)
    return profile(run, FLAGS.repetitions)


def main() -> None:
    """Runs what the flags say."""
    if FLAGS.profile and not FLAGS.json:
        print_profile(profile_rows())
        return
    if FLAGS.profile:
        rows = profile_rows()
    else:
        rows = layer_rows() if FLAGS.layer else network_rows()
    if FLAGS.json:
        for row in rows:
            print(json.dumps(row))
    else:
        print_rows(rows)


if __name__ == "__main__":
    programs.run(main)
