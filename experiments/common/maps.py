"""Networks whose ponder cost is drawn or scored: of a classifier, or of a detector."""

from __future__ import annotations

import os

import tf_keras as keras
from absl import flags

import sact_tf
from object_detection.feature_extractor import load_features
from sact_tf.checkpoint_kinds import DETECTOR
from sact_tf.checkpoints import checkpoint_kind


def load_network(model: sact_tf.Network) -> keras.layers.Layer:
    """Loads --checkpoint_dir, of a classification network or of a detector.

    Args:
        model: Built as the flags say.

    Returns:
        The network; of a detector's checkpoint, its feature extractor, blocks 1 to 3.
        Both have `with_end_points`.

    Raises:
        ValueError: A detector's checkpoint cannot be that of the network.
    """
    path = os.path.expanduser(flags.FLAGS.checkpoint_dir)
    if checkpoint_kind(path) != DETECTOR:
        sact_tf.load_slim_checkpoint(model, path)
        return model
    if not isinstance(model, sact_tf.ImagenetResNet):
        raise ValueError(
            f"--checkpoint_dir={path}: is a detector's, which needs --network=imagenet"
        )
    return load_features(model, path)
