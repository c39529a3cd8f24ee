"""Times the forms in which a SACT network is exported, against the ordinary network.

    python -m experiments.benchmarks.exports --model=50

Exports SavedModels (masked, and perforated by TensorFlow operations and by compiled
kernels), a TensorFlow Lite and ONNX files, loads them, and calls them by turns in one
process. Halting is imposed as in `experiments.benchmarks.network`, so that no trained
network is needed. ONNX needs the packages tf2onnx and onnxruntime.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import custom_ops
import sact_tf
from experiments.benchmarks.tools import (
    impose_halting,
    parse_numbers,
    time_by_turns,
)
from experiments.common import programs
from sact_tf import exporting

FLAGS = flags.FLAGS

FORMS = {
    "dense": ("saved_model", "vanilla", "masked"),
    "masked": ("saved_model", "sact", "masked"),
    "perforated": ("saved_model", "sact", "perforated"),
    "native": ("saved_model", "sact", "perforated"),
    "tflite_dense": ("tflite", "vanilla", "masked"),
    "tflite": ("tflite", "sact", "masked"),
    "onnx_dense": ("onnx", "vanilla", "masked"),
    "onnx": ("onnx", "sact", "masked"),
    "onnx_perforated": ("onnx", "sact", "perforated"),
}
"""Format, model type and execution by the name of the form."""

flags.DEFINE_string("model", "101", "Residual units per block, as in the networks.")
flags.DEFINE_integer("base_channels", 64, "Channels of the first block.", 1)
flags.DEFINE_integer("image_size", 224, "Side of the image.", lower_bound=32)
flags.DEFINE_list(
    "units_per_block",
    ["2.3", "3.8", "13.1", "2.7"],
    "Mean residual units run at a position, for each block.",
)
flags.DEFINE_list(
    "forms",
    ["dense", "masked", "perforated", "native"],
    f"What to time: dense and any of {', '.join(list(FORMS)[1:])}.",
)
flags.DEFINE_integer("repetitions", 11, "Timed calls of each form.", lower_bound=1)


def make_network(model_type: str, execution: str, image: np.ndarray) -> keras.Model:
    """Builds a network whose halting on images of this size is imposed.

    Raises:
        ValueError: Naming the flag, on a bad number of units.
    """
    keras.utils.set_random_seed(0)
    model = sact_tf.imagenet_resnet(
        FLAGS.model, model_type, 1001, FLAGS.base_channels, execution=execution
    )
    means = parse_numbers("units_per_block", FLAGS.units_per_block, 1, 1000)
    if len(means) != len(model.blocks):
        raise ValueError(
            f"--units_per_block: expected {len(model.blocks)} numbers, one per block; "
            f"got {','.join(FLAGS.units_per_block)}"
        )
    _, end_points = model.with_end_points(image, training=False)
    impose_halting(model.blocks, means, "blob")
    for block in model.blocks:
        size = end_points[block.name].shape[1:3]
        for head in getattr(block, "heads", []):  # exports do not know the size
            head.units = lambda *_, units=head.units, size=size: units(*size)
    return model


def make_call(form: str, directory: str, image: np.ndarray) -> Callable[[], dict]:
    """Exports and loads a form; returns a function that runs it on the image."""
    kind, model_type, execution = FORMS[form]
    model = make_network(model_type, execution, image)
    path = os.path.join(directory, form)
    if kind == "saved_model":
        implementation = "native" if form == "native" else "tensorflow"
        model.export_saved_model(
            path, implementation=implementation, image_size=FLAGS.image_size
        )
        loaded = tf.saved_model.load(path)

        def call():
            outputs = loaded.signatures["serving_default"](images=tf.constant(image))
            return {name: value.numpy() for name, value in outputs.items()}

    elif kind == "tflite":
        exporting.export_tflite(model, path, image.shape[1:3])
        threads = os.cpu_count()
        runner = tf.lite.Interpreter(path, num_threads=threads).get_signature_runner()

        def call():
            return runner(images=image)

    else:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                f"--forms: {form} needs the package onnxruntime; leave it out"
            ) from error

        exporting.export_onnx(model, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def call():
            return dict(zip(names, session.run(None, {"images": image})))

    return call


def main() -> None:
    """Times the forms, and prints medians relative to the ordinary SavedModel."""
    unknown = set(FLAGS.forms) - set(FORMS)
    if unknown or "dense" not in FLAGS.forms:
        raise ValueError(
            f"--forms: expected dense and any of {', '.join(list(FORMS)[1:])}; got "
            f"{','.join(FLAGS.forms)}"
        )
    if "native" in FLAGS.forms and custom_ops.load() is None:
        raise ValueError("--forms: native needs kernels, which cannot be compiled here")
    size = FLAGS.image_size
    image = np.random.default_rng(0).uniform(-1, 1, [1, size, size, 3])
    image = image.astype(np.float32)
    with tempfile.TemporaryDirectory() as directory:
        calls = {form: make_call(form, directory, image) for form in FLAGS.forms}
        flops = {form: float(call()["flops"].mean()) for form, call in calls.items()}
        seconds = time_by_turns(calls, FLAGS.repetitions)
    for form in calls:
        row = {
            "form": form,
            "relative_flops": flops[form] / flops["dense"],
            "seconds": seconds[form],
            "relative_time": seconds[form] / seconds["dense"],
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    programs.run(main)
