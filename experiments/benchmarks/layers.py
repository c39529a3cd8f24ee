"""Times a perforated convolution; `experiments.benchmarks.network --layer` runs it."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from absl import flags

import custom_ops
from experiments.benchmarks.tools import (
    parse_numbers,
    parse_sides,
    ranks,
    time_by_turns,
)

FLAGS = flags.FLAGS
_LAYER_RUNS = 5


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
