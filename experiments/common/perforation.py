"""What the program of perforation does step by step: rates, time, results."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from experiments.common import memory
from sact_tf import classifiers, keras_files, perforation, visualization
from sact_tf.data.examples import DataError
from sact_tf.perforation import CompactNetwork, baselines, surgery
from sact_tf.reading import read_json
from sact_tf.timing import time_by_turns

SIDES = ("dense", "native", "tensorflow", "explicit")
"""Who is timed: the dense network; the other one with compiled kernels, with TensorFlow
operations, and with interpolated maps."""


def parse_fractions(text: str) -> float | dict[str, float]:
    """Reads --keep_fraction: a number, or LAYER=NUMBER joined by commas.

    Raises:
        ValueError: It is neither.
    """
    try:
        if "=" not in text:
            return float(text)
        pairs = (part.split("=") for part in text.split(","))
        return {name.strip(): float(number) for name, number in pairs}
    except ValueError:
        raise ValueError(
            f"--keep_fraction={text}: must be a number, or LAYER=NUMBER joined by "
            "commas"
        ) from None


def runner(model: keras.Model, side: str) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a model as a compiled function of images, as one of `SIDES`."""
    if side == "dense":
        network = model
    elif side == "explicit":
        network = keras.Model(model.inputs, model.outputs)
    else:
        implementation = "auto" if side == "native" else "tensorflow"
        network = CompactNetwork(model, implementation=implementation)
    return tf.function(lambda images: network(images, training=False))


def _images(model, batch_size):
    shape = [batch_size, *model.inputs[0].shape[1:]]
    return tf.random.stateless_normal(shape, [1, 2])


def measure_time(
    dense: keras.Model, other: keras.Model, batch_size: int, repetitions: int
) -> dict[str, float]:
    """Returns median seconds of a batch by turns: of `SIDES` that there are.

    Args:
        dense: The dense network.
        other: The faster one; where it has no perforated layers it is `native`.
        batch_size: Images.
        repetitions: Timed calls of each side.
    """
    images = _images(dense, batch_size)
    is_perforated = bool(surgery.realised(other))
    sides = SIDES[1:] if is_perforated else ("native",)
    calls = {"dense": runner(dense, "dense")}
    calls |= {side: runner(other, side) for side in sides}
    return time_by_turns(
        {side: lambda run=run: run(images) for side, run in calls.items()}, repetitions
    )


def _prepare(path: str, side: str, batch_size: int):
    """Loads a network in a process of its own; returns the function that runs it."""
    model = keras_files.load_model(path)
    run, images = runner(model, side), _images(model, batch_size)
    return lambda: run(images).numpy()


def measure_memory(path: str, side: str, batch_size: int) -> float:
    """Returns the peak memory of inference beyond the weights, in MB.

    Args:
        path: Of a Keras archive.
        side: One of `SIDES`.
        batch_size: Images.
    """
    return memory.peak_memory(_prepare, path, side, batch_size)


def speedup(
    dense: keras.Model, network: CompactNetwork, batch_size: int, repetitions: int
) -> float:
    """Returns the dense network's time over another's, by turns."""
    images = _images(dense, batch_size)
    runs = runner(dense, "dense"), tf.function(network)
    calls = {k: lambda run=run: run(images) for k, run in enumerate(runs)}
    seconds = time_by_turns(calls, repetitions)
    return seconds[0] / seconds[1]


def error(network: keras.Model | CompactNetwork, examples, batch_size: int) -> float:
    """Returns the share of images that a classifier takes for something else."""
    if isinstance(network, keras.Model) and surgery.realised(network):
        network = CompactNetwork(network)
    with examples.explained_errors():
        result = classifiers.score(network, examples.evaluation_batches(batch_size))
    return 1 - result["accuracy"]


def curves(
    dense: keras.Model,
    masks: list[str],
    levels: list[float],
    training: object,
    evaluate: Callable[[CompactNetwork], float],
    time: Callable[[CompactNetwork], float] | None,
    seed: int,
) -> list[dict]:
    """Perforates single layers; yields a row for each layer, mask and keep fraction.

    Args:
        dense: The dense network.
        masks: Kinds of masks.
        levels: Keep fractions.
        training: Examples for impact masks.
        evaluate: Returns the error of a network.
        time: Returns its speed-up by time; None: it is not measured.
        seed: Of the masks.
    """
    dense_multiplies = baselines.count_multiplies(dense)
    for name in perforation.survey(dense).convolutions:
        for mask in masks:
            for level in levels:
                model = perforation.perforate(
                    dense, {name: level}, mask, training, seed
                )
                network = CompactNetwork(model)
                row = {
                    "layer": name,
                    "mask": mask,
                    "keep_fraction": level,
                    "kept": surgery.realised(model).get(name, 1.0),
                    "multiplies_speedup": dense_multiplies / network.multiplies,
                    "error": evaluate(network),
                }
                if time is not None:
                    row["time_speedup"] = time(network)
                yield row


def curves_figure(rows: list[dict], dense_error: float):
    """Draws error over what a layer keeps, a panel for each layer.

    Args:
        rows: Of `curves`.
        dense_error: Of the dense network.
    """
    names = list(dict.fromkeys(row["layer"] for row in rows))
    figure = visualization.figures.Figure(
        figsize=(3.6 * len(names), 3.2), layout="constrained"
    )
    axes = np.ravel(figure.subplots(1, len(names), sharey=True))
    for axis, name in zip(axes, names):
        of_layer = [row for row in rows if row["layer"] == name]
        for mask in dict.fromkeys(row["mask"] for row in of_layer):
            points = sorted(
                (1 / row["kept"], 100 * row["error"])
                for row in of_layer
                if row["mask"] == mask
            )
            axis.plot(*zip(*points), marker="o", markersize=3, label=mask)
        axis.axhline(100 * dense_error, color="grey", linewidth=0.8, linestyle=":")
        axis.set_title(name)
        axis.set_xlabel("positions / computed positions")
    axes[0].set_ylabel("error, %")
    axes[0].legend()
    return figure


_COLUMNS = {
    "method": "method",
    "speedup": "speed-up, measured",
    "multiplies_speedup": "by multiplies",
    "peak_memory_mb": "less memory",
    "error_before": "points of error lost before fine-tuning",
    "error_after": "after",
}


def report(paths: list[str]) -> str:
    """Returns the table, in Markdown, of several results.json.

    Raises:
        DataError: A file holds no results of this program.
    """
    lines = [
        "| " + " | ".join(_COLUMNS.values()) + " |",
        "|" + "---|" * len(_COLUMNS),
    ]
    for path in paths:
        row = read_json(os.path.join(path, "results.json"))
        if not isinstance(row, dict) or "multiplies_speedup" not in row:
            raise DataError(f"{path}: results.json holds no results of perforation")
        lines.append("| " + " | ".join(_cells(row)) + " |")
    return "\n".join(lines)


def _cells(row):
    def times(key):
        return f"{row[key]:.2f}x" if key in row else "-"

    def points(key):
        if key not in row or "dense_error" not in row:
            return "-"
        return f"{100 * (row[key] - row['dense_error']):+.2f}"

    peak = row.get("peak_memory_mb", {})
    less = (
        f"{peak['dense'] / peak['native']:.2f}x"
        if peak.get("native") and "dense" in peak
        else "-"
    )
    return (
        str(row.get("method")),
        times("speedup"),
        times("multiplies_speedup"),
        less,
        points("error_before"),
        points("error_after"),
    )
