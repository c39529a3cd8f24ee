"""How much the loss would change without an activation: scores of impact masks."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import classifiers
from sact_tf.domains import brief
from sact_tf.perforation.graph import graph_of
from sact_tf.perforation.implicit import in_inference


def batches_of(examples: object, batch_size: int = 100) -> Iterable:
    """Returns batches of images and labels.

    Args:
        examples: Preprocessed images [n, height, width, channels] and labels [n], as a
            pair; or an iterable of batches of them, such as a `tf.data.Dataset`.
        batch_size: Images per batch, of a pair.

    Raises:
        ValueError: They are neither, or there are none.
    """
    is_pair = isinstance(examples, (tuple, list)) and len(examples) == 2
    if is_pair and not isinstance(examples[0], tuple):  # a batch is a tuple
        images, labels = examples
        if len(images) != len(labels) or not len(images):
            raise ValueError(
                "examples must be as many images as labels, at least one; got "
                f"{len(images)} and {len(labels)}"
            )
        images, labels = np.asarray(images), np.asarray(labels)
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(batch_size)
    if isinstance(examples, (str, bytes)) or not isinstance(examples, Iterable):
        raise ValueError(
            "examples must be a pair of images and labels, or batches of them; got "
            f"{brief(examples)}"
        )
    return examples


def impact(values: tf.Tensor, gradients: tf.Tensor) -> tf.Tensor:
    """Estimates the change of the loss if a position's activations were zero.

    To first order, G = sum over channels of |dL/dV * V|, summed over images. For a loss
    that is linear in V, it is no less than the change's absolute value.

    Args:
        values: V, [batch, height, width, channels].
        gradients: dL/dV, where L of an image does not depend on other images.

    Returns:
        float32 [height, width].
    """
    product = tf.abs(tf.cast(gradients, tf.float32) * tf.cast(values, tf.float32))
    return tf.reduce_sum(product, [0, 3])


def impact_scores(
    model: keras.Model, examples: object, names: Collection[str]
) -> dict[str, np.ndarray]:
    """Returns the impact of every position of convolutions' outputs.

    V is the output before the activation, L an image's cross-entropy; in inference.

    Args:
        model: Functional or Sequential classifier.
        examples: As of `batches_of`; the paper takes 5000 of the training images.
        names: Of the convolutions.

    Returns:
        Means over images, float32 [height, width], by name.

    Raises:
        ValueError: There are no examples.
    """
    steps = graph_of(model)

    def forward(images, tape):
        outputs = {}

        def call(step, values):
            args, kwargs = step.call(values)
            layer = step.layer
            if layer.name not in names:
                return in_inference(layer, args, kwargs)
            output = linear_output(layer, args[0])
            tape.watch(output)
            outputs[layer.name] = output
            return output if layer.activation is None else layer.activation(output)

        return steps.run([images], call), outputs

    @tf.function(reduce_retracing=True)
    def measure(images, labels):
        images = tf.cast(images, model.inputs[0].dtype)
        with tf.GradientTape() as tape:
            predictions, outputs = forward(images, tape)
            loss = tf.reduce_sum(classifiers.log_loss(model, labels, predictions))
        gradients = tape.gradient(loss, outputs)
        return {name: impact(v, gradients[name]) for name, v in outputs.items()}

    total, count = dict.fromkeys(names, 0.0), 0
    for images, labels in batches_of(examples):
        for name, scores in measure(images, labels).items():
            total[name] += scores.numpy().astype(np.float64)
        count += len(labels)
    if not count:
        raise ValueError("examples must hold at least one image; got none")
    return {name: (t / count).astype(np.float32) for name, t in total.items()}


def linear_output(layer: keras.layers.Conv2D, inputs: tf.Tensor) -> tf.Tensor:
    """Returns a convolution's output before its activation."""
    dtype = layer.compute_dtype
    output = layer.convolution_op(tf.cast(inputs, dtype), tf.cast(layer.kernel, dtype))
    return (
        tf.nn.bias_add(output, tf.cast(layer.bias, dtype))
        if layer.use_bias
        else (output)
    )
