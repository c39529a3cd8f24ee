"""Blocks 1 to 3 of a residual network as the features of a detector (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import flops
from sact_tf.blocks import valid_after
from sact_tf.layers import zero_outside

_POOL_STRIDE = 2  # of the stem's pooling


def inside(sizes: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the bool mask [batch, height, width] of what lies inside of images.

    Args:
        sizes: int32 [batch, 2], heights and widths of the images, at the top left.
        x: The padded images, [batch, height, width, channels].
    """
    height, width = tf.unstack(tf.shape(x)[1:3])
    rows = tf.range(height) < sizes[:, :1]
    columns = tf.range(width) < sizes[:, 1:]
    return rows[:, :, tf.newaxis] & columns[:, tf.newaxis, :]


class FeatureExtractor(keras.layers.Layer):
    """Stem and first blocks of an ImageNet network, on images of several sizes.

    An image gets the same features in a padded batch as alone. This takes masked
    execution; the others need images without padding, such as one at a time.

    Strides are the network's own: 2 in the stem's convolution and its pooling, and in
    the first units of blocks 2 and 3, which makes 16 after block 3.

    Args:
        stem: The network's first convolution.
        blocks: Its blocks, without those that follow.
        execution: Of the blocks.
    """

    def __init__(
        self,
        stem: keras.layers.Conv2D,
        blocks: Sequence[keras.layers.Layer],
        execution: str = "masked",
        name: str = "feature_extractor",
    ):
        super().__init__(name=name)
        self.stem = stem
        self.blocks = list(blocks)
        self._execution = execution

    @property
    def stride(self) -> int:
        """Pixels of the image from one position of the features to the next."""
        stride = self.stem.strides[0] * _POOL_STRIDE
        for block in self.blocks:
            for unit in block.units:
                stride *= unit.strides
        return stride

    @tf.autograph.experimental.do_not_convert
    def call(self, images, sizes, training=None):
        """Extracts features.

        Args:
            images: [batch, height, width, 3] in [-1, 1]; each image is at the top left.
            sizes: int32 [batch, 2], heights and widths without padding.
            training: As in the blocks.

        Returns:
            Features [batch, h, w, channels], zero outside of images; and end points as
            those of the network: `inputs`, `block_scopes`, `block_num_units`,
            `flops` and `dense_flops` (int64 [batch], of the stem and these blocks; the
            latter is what an ordinary network needs), `<block>/...`; `valid`, bool
            [batch, h, w], where features lie inside of an image.

        Raises:
            tf.errors.InvalidArgumentError: Images are padded that must not be.
        """
        images = tf.cast(images, self.compute_dtype)
        is_padded = self._execution == "masked" and images.shape[0] != 1
        if not is_padded:
            tf.debugging.assert_equal(
                sizes,
                tf.broadcast_to(tf.shape(images)[1:3], tf.shape(sizes)),
                "padded images need execution='masked' and batches of more than one",
            )
        x, total, valid = self._run_stem(images, sizes, is_padded)
        end_points = {
            "inputs": images,
            "block_scopes": [block.name for block in self.blocks],
            "block_num_units": [len(block.units) for block in self.blocks],
        }
        dense_total = total
        for block in self.blocks:
            dense_total += block.dense_flops(x, valid)
            x, results = block(
                x,
                training=training,
                return_end_points=True,
                valid=valid if is_padded else None,
            )
            for key, value in results.items():
                end_points[f"{block.name}/{key}"] = value
            total += results["flops"]
            valid = valid_after(block, valid)
        end_points.update(flops=total, dense_flops=dense_total, valid=valid)
        return zero_outside(x, valid if is_padded else None), end_points

    def _run_stem(self, images, sizes, is_padded):
        """Runs convolution and pooling; returns features, FLOPs and their mask.

        Where 4 divides the size of an image, this is the network's own stem. On others
        that one pools at positions that depend on the size, which must not be: it may
        be any in a padded batch.
        """
        if is_padded:
            images = zero_outside(images, inside(sizes, images))
        x = self.stem(tf.pad(images, [[0, 0], [3, 3], [3, 3], [0, 0]]))
        valid = inside(-(-sizes // self.stem.strides[0]), x)
        total = flops.conv2d_flops(self.stem, flops.num_active(valid))
        lowest = tf.constant(x.dtype.min, x.dtype)
        if is_padded:
            x = tf.where(valid[..., tf.newaxis], x, lowest)
        bottom, right = tf.unstack(1 + tf.shape(x)[1:3] % 2)
        paddings = [[0, 0], [0, bottom], [0, right], [0, 0]]
        x = tf.pad(x, paddings, constant_values=lowest)
        x = tf.nn.max_pool2d(x, 3, _POOL_STRIDE, "VALID")
        valid = valid[:, ::_POOL_STRIDE, ::_POOL_STRIDE]
        return zero_outside(x, valid if is_padded else None), total, valid
