"""Ponder cost maps as pictures."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf


def has_maps(end_points: Mapping[str, object]) -> bool:
    """Whether these end points hold a ponder cost per position (SACT networks do)."""
    block = end_points["block_scopes"][0]
    ponder_cost = end_points.get(f"{block}/ponder_cost")
    return ponder_cost is not None and ponder_cost.shape.rank == 3


def sact_map(end_points: Mapping[str, object], key: str = "ponder_cost") -> tf.Tensor:
    """Sums the maps of all blocks at the size of the input (section 4.1).

    Args:
        end_points: Of a SACT network.
        key: "ponder_cost" or "num_units".

    Returns:
        float32 [batch, height, width, 1]; block maps are enlarged by nearest neighbour.
    """
    size = tf.shape(end_points["inputs"])[1:3]
    maps = [
        tf.compat.v1.image.resize_nearest_neighbor(
            tf.cast(end_points[f"{block}/{key}"], tf.float32)[..., tf.newaxis], size
        )
        for block in end_points["block_scopes"]
    ]
    return tf.add_n(maps)


def heatmap(
    end_points: Mapping[str, object],
    key: str = "ponder_cost",
    num_images: int = 5,
    alpha: float = 0.75,
    border: int = 5,
) -> tf.Tensor:
    """Draws each image beside the same image under its map in red, as the original's summaries do.

    Args:
        end_points: Of a SACT network.
        key: "ponder_cost" or "num_units".
        num_images: How many images of the batch are drawn at most.
        alpha: Opacity of the map. Full red is the largest value possible.
        border: Width of the black strip between both, in pixels.

    Returns:
        float32 [images, height, 2 * width + border, 3] in [0, 1].
    """
    images = tf.cast(end_points["inputs"][:num_images], tf.float32)
    images -= tf.reduce_min(images, [1, 2, 3], keepdims=True)
    images /= tf.reduce_max(images, [1, 2, 3], keepdims=True)
    largest = sum(end_points["block_num_units"])
    if key == "ponder_cost":
        largest += len(end_points["block_num_units"])
    red = sact_map(end_points, key)[:num_images] / largest
    overlay = images * (1 - alpha) + alpha * tf.pad(red, [[0, 0]] * 3 + [[0, 2]])
    strip = tf.zeros_like(images[:, :, :1]) + tf.zeros([1, 1, border, 1])
    return tf.concat([images, strip, overlay], axis=2)
