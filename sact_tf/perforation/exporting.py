"""SavedModels of perforated classifiers."""

from __future__ import annotations

import os

import tensorflow as tf
import tf_keras as keras

from sact_tf import classifiers, exporting
from sact_tf.perforation.implicit import CompactNetwork


def export_saved_model(
    model: keras.Model, path: str, implementation: str = "tensorflow"
) -> str:
    """Exports a classifier, which interpolates implicitly, at any batch size.

    The signature `serving_default` takes `images`, float32 [batch, height, width,
    channels], preprocessed as in training, and returns `probabilities`, float32 [batch,
    classes], `top_classes`, int32, and `top_probabilities`, float32 [batch, 5], and
    `logits` of a model that gives these.

    Args:
        model: Functional or Sequential, perforated or not, of one input and output.
        path: Directory to write.
        implementation: "tensorflow" loads anywhere; "native" is faster, and loads after
            `custom_ops.load()`.

    Returns:
        `path`.
    """
    network = CompactNetwork(model)
    is_softmax = classifiers.gives_probabilities(model)

    def serve(images):
        outputs = network(images)
        if is_softmax:
            return exporting.of_probabilities(outputs)
        return exporting.of_logits(outputs)

    images = tf.TensorSpec(model.inputs[0].shape, tf.float32, "images")
    return exporting.write_saved_model(
        model,
        os.fspath(path),
        tf.function(serve, [images], autograph=False),
        None,
        implementation,
    )
