"""The loss of segmentation, and weights of classes."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

VOID = -1
"""Label of pixels that are not counted."""

CLASS_WEIGHTINGS = ("none", "median", "log")
"""How classes may be weighted; see `class_weights`."""


def class_weights(kind: str, pixels: np.ndarray) -> np.ndarray | None:
    """Returns weights of the classes, of mean 1 over pixels, float32 [classes].

    With p the share of a class among all pixels that are not void: "median" is the
    median of all shares above 0, divided by p (Eigen and Fergus, 2015); "log" is
    1 / ln(1.02 + p), which rises less for rare classes (Paszke et al., ENet, 2016).

    Args:
        kind: One of `CLASS_WEIGHTINGS`; of "none" there are no weights.
        pixels: Of every class, in all training images. A class without any counts as
            one that has a single pixel.

    Raises:
        ValueError: On another kind.
    """
    if kind not in CLASS_WEIGHTINGS:
        accepted = ", ".join(CLASS_WEIGHTINGS)
        raise ValueError(f"class_weighting must be one of {accepted}; got {kind!r}")
    if kind == "none":
        return None
    pixels = np.asarray(pixels, np.float64)
    shares = np.maximum(pixels, 1) / np.maximum(pixels.sum(), 1)
    if kind == "median":
        weights = np.median(shares[pixels > 0]) / shares
    else:
        weights = 1 / np.log(1.02 + shares)
    return (weights / np.average(weights, weights=pixels)).astype(np.float32)


def cross_entropy(
    logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the summed cross-entropy of every image, and the weight of its pixels.

    Args:
        logits: float32 [batch, height, width, classes].
        labels: int32 [batch, height, width]; `VOID` is not counted.
        weights: Of classes, float32 [classes]; None: 1.

    Returns:
        Both float32 [batch]; their quotient is an image's mean, that of their sums the
        batch's. Of an image without any label, both are 0.
    """
    counts = labels != VOID
    known = tf.where(counts, labels, 0)
    weight = tf.cast(counts, tf.float32)
    if weights is not None:
        weight *= tf.gather(weights, known)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(known, logits)
    return tf.reduce_sum(losses * weight, [1, 2]), tf.reduce_sum(weight, [1, 2])
