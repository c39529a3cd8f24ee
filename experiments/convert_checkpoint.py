"""Converts a network between TF-Slim checkpoints and Keras files, and verifies it.

    python -m experiments.convert_checkpoint --model_type=sact \\
        --input=/tmp/sact --output=/tmp/sact.keras
    python -m experiments.convert_checkpoint \\
        --input=/tmp/sact.keras --output=/tmp/slim/model.ckpt-0

Names ending in .keras are whole Keras models, which know their own architecture; those
in .weights.h5 are weights of Keras models; any other is a TF-Slim checkpoint, or as
input a directory of them, as the training programs and the original code write them.
A .keras file is read only if it holds a network of this project; no code of it runs.
The written file is loaded again, and both networks run on a random image.
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

FLAGS = flags.FLAGS
_LARGEST_DIFFERENCE = 1e-5

flags.DEFINE_string("input", "", "What to convert.")
flags.DEFINE_string("output", "", "What to write; must not exist.")
programs.define_network_flags(checkpoint_dir=False)
programs.define_model_type()


def load(flag: str, path: str, like: keras.Model | None = None) -> keras.Model:
    """Loads a network of any of the three kinds.

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
        if path.endswith(".weights.h5"):
            keras_files.load_weights(model, path)
        else:
            sact_tf.load_slim_checkpoint(model, path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"--{flag}={path}: cannot be loaded: {error}") from error
    return model


def save(model: keras.Model, path: str, step: int) -> None:
    """Writes a network as what the name says."""
    if path.endswith(".keras"):
        keras_files.save_network(model, path)
    elif path.endswith(".weights.h5"):
        keras_files.save_weights(model, path)
    else:
        sact_tf.save_slim_checkpoint(model, path, step)


def largest_difference(model: keras.Model, other: keras.Model) -> float:
    """Runs both on a random image; returns how far their logits lie apart at most."""
    image = tf.random.stateless_uniform([1, 64, 64, 3], [0, 0], -1.0, 1.0)
    logits = [network(image, training=False).numpy() for network in (model, other)]
    return float(np.abs(logits[0] - logits[1]).max())


def main() -> None:
    """Converts, and verifies."""
    programs.require("input", "output")
    source, target = os.path.expanduser(FLAGS.input), os.path.expanduser(FLAGS.output)
    if glob.glob(f"{glob.escape(target)}*"):
        raise ValueError(f"--output={target}: exists already; name another")
    programs.make_directory("output", os.path.dirname(target) or ".")
    model = load("input", source)
    is_keras = source.endswith((".keras", ".weights.h5"))
    step = 0 if is_keras else sact_tf.checkpoint_step(source)
    save(model, target, step)
    difference = largest_difference(model, load("output", target, model))
    if not difference <= _LARGEST_DIFFERENCE:
        raise ValueError(
            f"--output={target}: differs from the input by {difference:.3g} on a "
            f"random image; at most {_LARGEST_DIFFERENCE:g} is accepted"
        )
    print(f"Wrote {target}; logits of a random image differ by {difference:.3g}")


if __name__ == "__main__":
    programs.run(main)
