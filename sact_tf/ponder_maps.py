"""How much a network computes on one image, and where."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import tensorflow as tf

from sact_tf import visualization
from sact_tf.data.images import read_image
from sact_tf.networks.network import Network
from sact_tf.preprocessing import preprocess_input


@dataclasses.dataclass(frozen=True)
class Ponder:
    """What a network spends on an image.

    Attributes:
        image: uint8 [height, width, 3].
        map: Ponder cost summed over blocks, float32 [height, width]; None where images
            halt as a whole, or not at all.
        overlay: uint8 [height, width, 3], the map in colours over the image; or None.
        flops: Operations of the network.
        dense_flops: Operations of the same network if all its units ran everywhere.
        units: Mean units per block by its name, those of all blocks.
        ponder_cost: Sum over blocks of the mean ponder cost; 0 where all units run.
        logits: float32 [classes].
    """

    image: np.ndarray
    map: np.ndarray | None
    overlay: np.ndarray | None
    flops: int
    dense_flops: int
    units: dict[str, float]
    ponder_cost: float
    logits: np.ndarray


def ponder(model: Network, image: np.ndarray | tf.Tensor | str | os.PathLike) -> Ponder:
    """Runs a network on an image of any size and tells what it spends.

    Args:
        model: From `imagenet_resnet` or `cifar_resnet`.
        image: Path of a JPEG or PNG file; or [height, width, 3], uint8, or floats in
            [0, 255].

    Raises:
        DataError: The file cannot be read, or values are not finite.
        ValueError: The image has another shape or other values.
    """
    if isinstance(image, (str, os.PathLike)):
        image = read_image(os.path.expanduser(os.fspath(image)))
    shape = np.shape(image)
    if len(shape) != 3:
        raise ValueError(f"image must be [height, width, 3]; got {list(shape)}")
    inputs = tf.convert_to_tensor(preprocess_input(image, model))[tf.newaxis]
    logits, end_points = model.with_end_points(inputs, training=False)
    pixels = np.clip(np.asarray(image) + 0.5, 0, 255).astype(np.uint8)
    values = overlay = None
    if visualization.has_maps(end_points):
        values = visualization.sact_map(end_points)[0, ..., 0].numpy()
        overlay = visualization.overlay(pixels, visualization.colour_map(values))
    units, cost = {}, 0.0
    for block, count in zip(end_points["block_scopes"], end_points["block_num_units"]):
        units[block] = float(count)
        if f"{block}/num_units" in end_points:
            units[block] = float(np.mean(end_points[f"{block}/num_units"]))
            cost += float(np.mean(end_points[f"{block}/ponder_cost"]))
    return Ponder(
        pixels,
        values,
        overlay,
        int(end_points["flops"][0]),
        int(model.dense_flops(inputs)[0]),
        units,
        cost,
        logits[0].numpy(),
    )
