"""SavedModels for serving."""

from __future__ import annotations

import os

import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf import visualization


def export_saved_model(
    model: keras.Model, path: str, implementation: str = "tensorflow"
) -> str:
    """Exports a network for serving, at any batch and image size.

    The signature `serving_default` takes `images`, float32 [batch, height, width, 3],
    preprocessed as in training, and returns `logits` and `probabilities` [batch,
    classes], `flops` int64 [batch], and for SACT networks `ponder_cost_map` float32
    [batch, height, width, 1].

    Args:
        model: Residual network of this package.
        path: Directory to write.
        implementation: Of perforated execution: "tensorflow" loads anywhere; "native"
            is faster, and loads after `custom_ops.load()`.

    Returns:
        `path`.
    """
    path = os.fspath(path)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], name="images")])
    def serve(images):
        logits, end_points = model.with_end_points(images, training=False)
        outputs = {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "flops": end_points["flops"],
        }
        if visualization.has_maps(end_points):
            outputs["ponder_cost_map"] = visualization.sact_map(end_points)
        return outputs

    module = tf.Module()
    module.variables_ = model.variables
    module.serve = serve
    with custom_ops.default_implementation(implementation):
        tf.saved_model.save(module, path, signatures={"serving_default": serve})
    return path
