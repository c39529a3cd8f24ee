"""Converts a network between TF-Slim checkpoints and Keras files, and verifies it.

    python -m experiments.convert_checkpoint --model_type=sact \\
        --input=/tmp/sact --output=/tmp/sact.keras
    python -m experiments.convert_checkpoint \\
        --input=/tmp/sact.keras --output=/tmp/slim/model.ckpt-0

Names ending in .keras are whole Keras models, which know their own architecture; those
in .weights.h5 are weights of Keras models; any other is a TF-Slim checkpoint. As input,
all that `sact_tf.load_pretrained` reads is accepted, by its content. A .keras file is
read only if it holds a network of this project; no code of any file runs. The written
file is loaded again, and both networks run on a random image; so does that of Keras
Applications, if the input is its.
"""

from __future__ import annotations

import glob
import os

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import programs
from sact_tf import keras_files
from sact_tf.networks.imagenet_resnet import UNITS_PER_BLOCK
from sact_tf.pretrained import SOURCES

FLAGS = flags.FLAGS
_LARGEST_DIFFERENCE = 1e-5
_DEPTHS = ("50", "101", "152")  # of Keras Applications

flags.DEFINE_string("input", "", "What to convert.")
flags.DEFINE_string("output", "", "What to write; must not exist.")
programs.define_network_flags(checkpoint_dir=False)
programs.define_model_type(with_iterative=True)


def load(flag: str, path: str, like: keras.Model | None = None) -> keras.Model:
    """Loads a network of any kind.

    Args:
        flag: That gave the path.
        path: Of the file.
        like: Network of the same architecture; None: the flags tell it.

    Raises:
        ValueError: Naming the flag, if the file cannot be read or is another network's.
    """
    try:
        if path.endswith(".keras"):
            return keras_files.load_network(path)
        if like is None:
            model = programs.make_network()
        else:
            model = type(like).from_config(like.get_config())
        loaded = sact_tf.load_pretrained(model, path, fresh_halting=False)
        if loaded.source == SOURCES["keras_applications"].description:
            _compare_with_source(model, path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--{flag}={path}: cannot be loaded: {error}") from error
    for note in loaded.notes:
        print(f"{path}: {note}")
    return model


def _compare_with_source(model: keras.Model, path: str) -> None:
    """Raises ValueError if Keras Applications makes anything else of the weights."""
    names = {UNITS_PER_BLOCK[depth]: f"ResNet{depth}V2" for depth in _DEPTHS}
    name = names.get(tuple(len(block.units) for block in model.blocks))
    if name is None or model.options.num_classes not in (1000, 1001):
        return
    source = getattr(keras.applications, name)(
        weights=None, input_shape=(64, 64, 3), classifier_activation=None
    )
    source.load_weights(path)
    difference, scale = largest_difference(model, source)
    print(
        f"{path}: logits of a random image differ from those of {name} by "
        f"{difference:.3g} of {scale:.3g}"
    )
    if not difference <= _LARGEST_DIFFERENCE * max(scale, 1.0):
        raise ValueError(
            f"its logits differ from those of keras.applications.{name} by "
            f"{difference:.3g} on a random image"
        )


def save(model: keras.Model, path: str, step: int) -> None:
    """Writes a network as what the name says."""
    if path.endswith(".keras"):
        keras_files.save_network(model, path)
    elif path.endswith(".weights.h5"):
        keras_files.save_weights(model, path)
    else:
        sact_tf.save_slim_checkpoint(model, path, step)


def largest_difference(model: keras.Model, other: keras.Model) -> tuple[float, float]:
    """Runs both on a random image.

    Returns how far their logits lie apart at most, and the largest one, of classes that
    both have: the background, class 0, may be missing in one.
    """
    image = tf.random.stateless_uniform([1, 64, 64, 3], [0, 0], -1.0, 1.0)
    logits = [network(image, training=False).numpy() for network in (model, other)]
    classes = min(values.shape[-1] for values in logits)
    logits = [values[:, -classes:] for values in logits]
    return float(np.abs(logits[0] - logits[1]).max()), float(np.abs(logits[1]).max())


def main() -> None:
    """Converts, and verifies."""
    programs.require("input", "output")
    source, target = os.path.expanduser(FLAGS.input), os.path.expanduser(FLAGS.output)
    if glob.glob(f"{glob.escape(target)}*"):
        raise ValueError(f"--output={target}: exists already; name another")
    programs.make_directory("output", os.path.dirname(target) or ".")
    model = load("input", source)
    step = 0 if os.path.isfile(source) else sact_tf.checkpoint_step(source)
    save(model, target, step)
    difference, _ = largest_difference(model, load("output", target, model))
    if not difference <= _LARGEST_DIFFERENCE:
        raise ValueError(
            f"--output={target}: differs from the input by {difference:.3g} on a "
            f"random image; at most {_LARGEST_DIFFERENCE:g} is accepted"
        )
    print(f"Wrote {target}; logits of a random image differ by {difference:.3g}")


if __name__ == "__main__":
    programs.run(main)
