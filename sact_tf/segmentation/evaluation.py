"""Evaluation of segmentation: IoU, accuracy of pixels, operations, units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from sact_tf import flops
from sact_tf.end_points import metric_values
from sact_tf.evaluation import Moments, used_units
from sact_tf.segmentation import metrics
from sact_tf.segmentation.data import SegmentationExamples
from sact_tf.segmentation.network import SegmentationNetwork

_OPERATIONS = ("Flops", "Macs")  # whose range is told, too


def _values(model, end_points):
    """Returns what is told of every image, by name."""
    values = metric_values(end_points)
    backbone, head = values.pop("Total Flops"), end_points["head_flops"]
    values["Backbone Flops"] = backbone
    values["Head Flops"] = head
    values["Total Flops"] = backbone + head
    of_head = flops.multiply_accumulates(head)
    of_backbone = values.pop("Total Macs", flops.multiply_accumulates(backbone))
    values["Backbone Macs"] = of_backbone
    values["Total Macs"] = of_backbone + of_head
    values.pop("Total Expected Flops", None)
    values["Relative Flops"] = backbone / end_points["dense_flops"]
    return values


def evaluate(
    model: SegmentationNetwork,
    examples: SegmentationExamples,
    batch_size: int = 1,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """Evaluates a segmentation network; every image counts once.

    Pixels of all images are counted together, void is not. A prediction has the size of
    its labels.

    Args:
        model: The network.
        examples: Images and labels.
        batch_size: Images per step.
        class_names: Of the classes; None: those of the examples.
        seed: Of networks that stop by chance.
        progress: Called with the number of images done after each step.

    Returns:
        `Mean IoU`, `Pixel Accuracy`, `Mean Accuracy`, and `IoU/<class>` of every class
        that occurs; of `Total Flops` (backbone and head), `Backbone Flops`, `Head
        Flops`, the same of `Macs`, and `Relative Flops` (the backbone's, divided by
        those of an ordinary one of its depth) `/mean`, `/std`, `/min` and `/max` over
        images; of `<block>/{flops,ponder_cost,num_units}` `_mean` and `_std`; and what
        `used_units` tells. And the matrix of `metrics.confusion`.

    Raises:
        ValueError: All pixels are void.
    """

    @tf.function(reduce_retracing=True)
    def run(images, labels, seed):
        logits, end_points = model.with_end_points(
            images, training=False, seed=seed, output_size=tf.shape(labels)[1:3]
        )
        classes = tf.argmax(logits, -1, tf.int32)
        found = metrics.confusion(labels, classes, model.num_classes)
        return found, _values(model, end_points)

    matrix = np.zeros([model.num_classes] * 2, np.int64)
    moments: dict[str, Moments] = {}
    done = 0
    with examples.explained_errors():
        for k, batch in enumerate(examples.evaluation_batches(batch_size)):
            found, values = run(batch["image"], batch["labels"], tf.constant([seed, k]))
            matrix += found.numpy()
            for name, value in values.items():
                moments.setdefault(name, Moments()).add(value.numpy())
            done += len(batch["image"])
            if progress is not None:
                progress(done)
    results = metrics.scores(matrix)
    for name, iou in zip(class_names or examples.names(), metrics.class_iou(matrix)):
        if not np.isnan(iou):
            results[f"IoU/{name}"] = float(iou)
    for name, value in moments.items():
        is_total = name.endswith(_OPERATIONS)
        separator = "/" if is_total else "_"
        results[f"{name}{separator}mean"] = value.mean
        results[f"{name}{separator}std"] = value.std
        if is_total:
            results[f"{name}/min"] = value.smallest
            results[f"{name}/max"] = value.largest
    return {**results, **used_units(moments, model.blocks)}, matrix
