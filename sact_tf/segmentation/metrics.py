"""Confusion of classes, and what follows of it: IoU and accuracy of pixels."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf.segmentation.losses import VOID


def confusion(labels: tf.Tensor, classes: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Counts pixels by label and predicted class; void is not counted.

    Args:
        labels: int32 of any shape; `VOID` where a pixel is not counted.
        classes: int32 of the same shape, below `num_classes`.
        num_classes: Number of classes.

    Returns:
        int64 [num_classes, num_classes]; rows are labels, columns predictions.
    """
    nowhere = num_classes**2
    cells = tf.where(labels != VOID, labels * num_classes + classes, nowhere)
    counts = tf.math.bincount(
        tf.reshape(cells, [-1]), minlength=nowhere + 1, maxlength=nowhere + 1
    )
    return tf.cast(tf.reshape(counts[:nowhere], [num_classes] * 2), tf.int64)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Returns intersection over union of every class, NaN of one that never occurs.

    A class occurs where it is a label or predicted.

    Args:
        matrix: As of `confusion`.

    Returns:
        float64 [classes].

    >>> class_iou(np.array([[2, 1, 0], [1, 4, 0], [0, 0, 0]]))
    array([0.5       , 0.66666667,        nan])
    """
    matrix = np.asarray(matrix, np.float64)
    hits = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - hits
    return np.divide(hits, union, np.full_like(hits, np.nan), where=union > 0)


def scores(matrix: np.ndarray) -> dict[str, float]:
    """Returns `Mean IoU`, `Pixel Accuracy` and `Mean Accuracy` (of classes).

    Means are over the classes that occur (mean IoU), or that labels have.

    Args:
        matrix: As of `confusion`, of a whole data set.

    Raises:
        ValueError: No pixel was counted.
    """
    matrix = np.asarray(matrix, np.float64)
    if not matrix.sum():
        raise ValueError("nothing to evaluate: all pixels are void")
    hits, labelled = np.diag(matrix), matrix.sum(1)
    recalls = hits[labelled > 0] / labelled[labelled > 0]
    return {
        "Mean IoU": float(np.nanmean(class_iou(matrix))),
        "Pixel Accuracy": float(hits.sum() / matrix.sum()),
        "Mean Accuracy": float(recalls.mean()),
    }


class MeanIoU(keras.metrics.Metric):
    """Running mean IoU of labels with void, of `confusion`.

    Args:
        num_classes: Number of classes.
        name: Of the metric.
    """

    def __init__(self, num_classes: int, name: str = "mean_iou"):
        super().__init__(name=name, dtype="float64")
        self._num_classes = num_classes
        self.matrix = self.add_weight(
            "matrix", [num_classes] * 2, initializer="zeros", dtype="float64"
        )

    def update_state(self, labels, classes, sample_weight=None):
        found = confusion(labels, classes, self._num_classes)
        self.matrix.assign_add(tf.cast(found, tf.float64))

    def reset_state(self):
        self.matrix.assign(tf.zeros_like(self.matrix))

    def result(self):
        matrix = self.matrix.read_value()
        hits = tf.linalg.diag_part(matrix)
        union = tf.reduce_sum(matrix, 0) + tf.reduce_sum(matrix, 1) - hits
        occurring = tf.reduce_sum(tf.cast(union > 0, tf.float64))
        total = tf.reduce_sum(tf.math.divide_no_nan(hits, union))
        return tf.math.divide_no_nan(total, occurring)
