"""Times trained networks on test images, as they were trained to halt.

    python -m experiments.benchmarks.zoo --networks=sact-shapes64 --output_dir=times
    python -m experiments.benchmarks.zoo --evaluations='runs/*/eval.json' \\
        --dataset_dir=DIR --output_dir=times

Takes networks of the zoo by their names, and checkpoints by the eval.json files of
cifar_main. Each runs masked and perforated by compiled kernels, against the ordinary
network of the same depth in TensorFlow and in OpenVINO; all sides of a network run by
turns on the same images. Writes `times.json`, which zoo_pack and report-like programs
read, and `tradeoff.png`: accuracy over milliseconds beside accuracy over operations.
Accuracy and operations are those of card or file, of the whole test set.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import custom_ops
import sact_tf
from experiments.benchmarks.tools import time_by_turns
from experiments.common import programs, run_record
from sact_tf import optional, reading, visualization, zoo
from sact_tf.data import cifar, shapes
from sact_tf.data.examples import DataError, Examples
from sact_tf.domains import AT_LEAST_0, COUNT, FRACTION
from sact_tf.networks.residual_network import ResidualNetwork
from sact_tf.writing import write_json
from sact_tf.zoo import kinds

FLAGS = flags.FLAGS

SIDES = ("masked", "native", "ordinary", "openvino")
"""masked and native: the network itself; the others: the ordinary one of its depth."""

_ORDINARY = ("ordinary", "openvino")
_TOLERANCE = 1e-2  # of logits, between sides that compute the same

flags.DEFINE_list(
    "networks",
    [],
    "Names of the zoo; without --evaluations by default all it can time.",
)
flags.DEFINE_multi_string(
    "evaluations", [], "Pattern of eval.json files of cifar_main; may be repeated."
)
flags.DEFINE_string(
    "dataset_dir",
    None,
    "Directory with cifar10_test.tfrecord, for networks of CIFAR-10.",
)
flags.DEFINE_list("sides", list(SIDES), f"What to time, of {', '.join(SIDES)}.")
flags.DEFINE_integer("num_images", 64, "Test images, the first ones.", lower_bound=1)
flags.DEFINE_integer("batch_size", 1, "Images per call.", lower_bound=1)
flags.DEFINE_integer(
    "repetitions", 5, "Timed calls of each side on each batch.", lower_bound=1
)
flags.DEFINE_string("output_dir", "", "Directory to write to.")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained network that is timed.

    Attributes:
        name: In the zoo, or the file of its evaluation.
        model: The network, masked.
        dataset: As of --dataset of cifar_main.
        side: Of its images.
        accuracy: On the whole test set.
        flops: Mean per image, there.
    """

    name: str
    model: keras.Model
    dataset: str
    side: int
    accuracy: float
    flops: float

    @property
    def is_ordinary(self) -> bool:
        """Whether it is an ordinary network."""
        return self.model.options.model_type == "vanilla"

    @property
    def dense_flops(self) -> float:
        """What an ordinary network of its depth takes for an image."""
        images = tf.zeros([1, self.side, self.side, 3])
        return float(self.model.dense_flops(images)[0])


def of_zoo(name: str) -> Subject:
    """Returns a network of the zoo.

    Raises:
        ValueError: There is none of that name, or it classifies no images here.
    """
    try:
        card = zoo.card(name)
    except ValueError as error:
        raise ValueError(f"--networks={name}: {error}") from error
    if card.evaluation["program"] != "cifar_main":
        raise ValueError(
            f"--networks={name}: was evaluated by {card.evaluation['program']}; this "
            "program times networks of cifar_main"
        )
    row = card.evaluation
    return Subject(
        name,
        sact_tf.load(name),
        row["dataset"],
        card.image_size[0],
        row["value"],
        row["flops"],
    )


def of_evaluation(path: str) -> Subject:
    """Returns the network of an eval.json.

    Raises:
        DataError: It is of another program, or too old to say how it is made.
    """
    fields = {
        "program": reading.text(),
        "checkpoint": reading.text(),
        "dataset": reading.text(),
        "image_size": reading.number(COUNT),
        "eval/Accuracy": reading.number(FRACTION),
        "Total Flops/mean": reading.number(AT_LEAST_0),
    }
    row = reading.checked_row(reading.read_json(path), fields, path)
    if row["program"] != "cifar_main" or not isinstance(row.get("network"), Mapping):
        raise DataError(
            f"{path}: is of {row['program']}, or does not say how its network is made; "
            "evaluate the checkpoint again with cifar_main"
        )
    model = kinds.make(row["network"], execution="masked")
    sact_tf.load_slim_checkpoint(model, row["checkpoint"])
    return Subject(
        path,
        model,
        row["dataset"],
        row["image_size"],
        row["eval/Accuracy"],
        row["Total Flops/mean"],
    )


def subjects() -> list[Subject]:
    """Returns the networks that the flags name."""
    names = FLAGS.networks
    if not names and not FLAGS.evaluations:
        names = [
            name
            for name in zoo.list_networks()
            if zoo.card(name).evaluation["program"] == "cifar_main"
        ]
    paths = []
    for pattern in FLAGS.evaluations:
        found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        if not found:
            raise FileNotFoundError(f"--evaluations={pattern}: matches no file")
        paths += found
    found = [*map(of_zoo, names), *map(of_evaluation, dict.fromkeys(paths))]
    if not found:
        raise ValueError("--networks: no network of the zoo is there to be timed")
    return found


def load_examples(subject: Subject) -> Examples:
    """Returns the test images of a network, the first ones."""
    if subject.dataset == "shapes":
        return shapes.load("test", subject.side, FLAGS.num_images)
    load = cifar.load_tfds if subject.dataset == "tfds" else cifar.load_tfrecord
    with programs.naming_dataset_dir():
        return load(FLAGS.dataset_dir, "test")


def ordinary(model: keras.Model) -> keras.Model:
    """Returns the ordinary network of the same depth and width.

    Its weights are its own; of an ordinary network, the network itself. Iterative
    networks have none, and are returned with all their iterations to run.
    """
    options = model.options
    if options.model_type == "vanilla":
        return model
    if type(model).__name__ == "IterativeNet":
        return model
    return type(model)(
        options.model,
        "vanilla",
        num_classes=options.num_classes,
        base_channels=options.base_channels,
    )


def in_tensorflow(model: keras.Model, implementation: str = "auto") -> Callable:
    """Returns a function from a batch to logits, in one graph."""

    @tf.function(autograph=False, reduce_retracing=True)
    def run(images):
        with custom_ops.default_implementation(implementation):
            return model(images, training=False)

    return lambda images: run(images).numpy()


def in_openvino(model: keras.Model, batch: tf.Tensor) -> Callable:
    """Returns a function from a batch to logits, by OpenVINO in float32."""
    openvino = optional.load("openvino")

    @tf.function(autograph=False)
    def run(images):
        return model(images, training=False)

    # A graph of constants, which OpenVINO reads without a file.
    converted = openvino.convert_model(
        run.get_concrete_function(tf.TensorSpec(batch.shape, tf.float32))
    )
    compiled = openvino.Core().compile_model(
        converted,
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"},
    )
    return lambda images: compiled([images.numpy()])[compiled.output(0)]


def make_sides(subject: Subject, batch: tf.Tensor) -> dict[str, Callable]:
    """Returns what is timed of a network, by the side's name.

    Raises:
        ValueError: Two sides that compute the same differ.
    """
    model, dense = subject.model, ordinary(subject.model)
    makers = {
        "masked": lambda: in_tensorflow(model),
        "native": lambda: in_tensorflow(model.with_execution("perforated"), "native"),
        "ordinary": lambda: in_tensorflow(dense),
        "openvino": lambda: in_openvino(dense, batch),
    }
    chosen = [
        side for side in SIDES if side in FLAGS.sides and _applies(side, subject, dense)
    ]
    sides = {side: makers[side]() for side in chosen}
    logits = {side: run(batch) for side, run in sides.items()}
    for first, second in (("masked", "native"), ("ordinary", "openvino")):
        if first in logits and second in logits:
            difference = np.abs(logits[first] - logits[second]).max()
            if not difference <= _TOLERANCE * max(1, np.abs(logits[first]).max()):
                raise ValueError(
                    f"{subject.name}: logits of {first} and {second} differ by "
                    f"{difference:g}"
                )
    return sides


def _applies(side, subject, dense):
    """Whether a side says anything of a network."""
    if subject.is_ordinary:
        return side in _ORDINARY
    return side not in _ORDINARY or dense is not subject.model


def time_subject(subject: Subject) -> list[dict[str, object]]:
    """Times all sides of a network; returns a row of each."""
    examples = load_examples(subject)
    size = min(FLAGS.batch_size, FLAGS.num_images)
    batches = []
    for images, _ in examples.evaluation_batches(size):
        if len(images) < size or (len(batches) + 1) * size > FLAGS.num_images:
            break
        batches.append(images)
    sides = make_sides(subject, batches[0])
    times = {side: [] for side in sides}
    for images in batches:
        calls = {s: (lambda s=s, x=images: sides[s](x)) for s in sides}
        for side, seconds in time_by_turns(calls, FLAGS.repetitions).items():
            times[side].append(1000 * seconds / size)
    dense = subject.dense_flops
    return [
        {
            "name": subject.name,
            "side": side,
            "milliseconds": float(np.mean(values)),
            "milliseconds_std": float(np.std(values)),
            # Nothing is known of the ordinary network beside an adaptive one.
            "accuracy": subject.accuracy if _is_own(side, subject) else None,
            "flops": subject.flops if _is_own(side, subject) else dense,
            "relative_flops": subject.flops / dense if _is_own(side, subject) else 1.0,
            "batch_size": size,
            "num_images": size * len(batches),
            "machine": run_record.machine(),
        }
        for side, values in times.items()
    ]


def _is_own(side, subject):
    """Whether a side computes what the network was trained to."""
    return subject.is_ordinary or side not in _ORDINARY


def draw(rows: list[dict[str, object]], path: str) -> None:
    """Draws accuracy over time beside accuracy over operations."""
    panels = {}
    for key, label in (
        ("milliseconds", "ms per image"),
        ("flops", "FLOPs per image"),
    ):
        curves: dict[str, list[tuple[float, float, float]]] = {}
        for row in rows:
            if row["accuracy"] is not None:
                point = (row[key], 100 * row["accuracy"], 0.0)
                curves.setdefault(row["side"], []).append(point)
        panels[label] = curves
    figure = visualization.curves_side_by_side(panels, "accuracy, %")
    visualization.save_figure(figure, path)


def main() -> None:
    """Times all networks; prints, writes and draws."""
    programs.require("output_dir")
    unknown = set(FLAGS.sides) - set(SIDES)
    if unknown or not FLAGS.sides:
        raise ValueError(
            f"--sides={','.join(FLAGS.sides)}: expected any of {', '.join(SIDES)}"
        )
    if "openvino" in FLAGS.sides:
        optional.load("openvino")
    if "native" in FLAGS.sides and custom_ops.load() is None:
        raise ValueError(
            "--sides: native needs kernels, which cannot be compiled here; leave it out"
        )
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    rows = []
    for subject in subjects():
        if not isinstance(subject.model, ResidualNetwork):
            raise ValueError(f"{subject.name}: is no residual network")
        for row in time_subject(subject):
            rows.append(row)
            print(
                f"{row['name']:<32} {row['side']:<10} {row['milliseconds']:8.3f} ms  "
                f"{100 * row['relative_flops']:6.1f} % of operations",
                flush=True,
            )
    write_json(os.path.join(output_dir, "times.json"), rows)
    picture = os.path.join(output_dir, "tradeoff.png")
    draw(rows, picture)
    print(f"Wrote {picture} and times.json beside it")


if __name__ == "__main__":
    programs.run(main)
