"""What halts: whole images, or positions of them.

A domain says what shape S the values of a halting rule have, and how they and the
features [batch, height, width, channels] of a block go together.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

from sact_tf.halting.heads import ImageHaltingScore, SpatialHaltingScore


def safe_mean(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean of all values, 0 where there are none."""
    count = tf.cast(tf.size(values), values.dtype)
    return tf.math.divide_no_nan(tf.reduce_sum(values), count)


def share_in_tiles(scores: tf.Tensor, tile_size: int) -> tf.Tensor:
    """Gives all positions of a k x k tile their mean score (SACT, section 2.3).

    Args:
        scores: [batch, height, width].
        tile_size: Side k of the tiles, which begin at the top left corner.
    """
    height, width = tf.unstack(tf.shape(scores)[1:])
    around = [[0, 0], [0, -height % tile_size], [0, -width % tile_size]]

    def tile_sums(values):
        values = tf.pad(values, around)[..., tf.newaxis]
        return tf.nn.avg_pool2d(values, tile_size, tile_size, "VALID")[..., 0]

    means = tile_sums(scores) / tile_sums(tf.ones_like(scores))
    for axis in (1, 2):
        means = tf.repeat(means, tile_size, axis)
    return tf.reshape(means[:, :height, :width], tf.shape(scores))


class HaltingDomain:
    """Interface of domains.

    Attributes:
        name: What `AdaptiveBlock(domain=...)` is called with.
        default_head: Makes a head whose scores have this domain's shape.
        has_tiles: Whether neighbours can share their scores.
    """

    name: str
    default_head: Callable[..., keras.layers.Layer]
    has_tiles: bool = False

    def shape(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the shape S, int32, for features [batch, height, width, channels]."""
        raise NotImplementedError

    def valid(self, valid: tf.Tensor | None) -> tf.Tensor | None:
        """Returns what of S exists at all, given the positions inside of images."""
        raise NotImplementedError

    def spread(self, values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Gives every position of x its value: S to [batch, height, width]."""
        raise NotImplementedError

    def of_map(self, values: tf.Tensor) -> tf.Tensor:
        """Returns what goes with S of values [height, width] or [batch, ...]."""
        return values

    def factors(self, values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns values of S in the type of x, to multiply x with."""
        raise NotImplementedError

    def mask(self, active: tf.Tensor) -> tf.Tensor | None:
        """Returns the positions that a unit must leave as they are elsewhere.

        None: it may do what it likes, since nothing of what has halted is read again.
        """
        raise NotImplementedError

    def share(self, scores: tf.Tensor, tile_size: int) -> tf.Tensor:
        """Lets what halts together share its score."""
        return scores

    def mean(self, values: tf.Tensor, valid: tf.Tensor | None = None) -> tf.Tensor:
        """Averages values of S over images and, within each, its positions.

        0 for no images.
        """
        raise NotImplementedError

    def flops(
        self,
        count: Callable[..., tf.Tensor | None],
        active: tf.Tensor | None,
        valid: tf.Tensor | None,
    ) -> tf.Tensor | None:
        """Counts the operations of a unit or head where it runs.

        Args:
            count: Counts by `active` and `valid` [batch, height, width], as
                `Unit.flops`.
            active: Bool of shape S; None: everything runs.
            valid: Bool [batch, height, width], positions inside of images.

        Returns:
            int64 [batch], or None where `count` does not count.
        """
        raise NotImplementedError


class ImageDomain(HaltingDomain):
    """Every image halts on its own, as in ACT (SACT, section 2.2): S is [batch]."""

    name = "image"
    default_head = ImageHaltingScore

    def shape(self, x):
        return tf.shape(x)[:1]

    def valid(self, valid):
        return None

    def spread(self, values, x):
        return tf.broadcast_to(values[:, tf.newaxis, tf.newaxis], tf.shape(x)[:3])

    def of_map(self, values):  # where they differ, an image is its first position
        return values[..., 0, 0] if values.shape.rank >= 2 else values

    def factors(self, values, x):
        return tf.cast(values, x.dtype)[:, tf.newaxis, tf.newaxis, tf.newaxis]

    def mask(self, active):
        return None

    def mean(self, values, valid=None):
        return safe_mean(values)

    def flops(self, count, active, valid):
        total = count(None, valid)
        if total is None or active is None:
            return total
        return total * tf.cast(active, tf.int64)


class PositionDomain(HaltingDomain):
    """Every position halts on its own, as in SACT (SACT, section 2.3).

    S is [batch, height, width].
    """

    name = "position"
    default_head = SpatialHaltingScore
    has_tiles = True

    def shape(self, x):
        return tf.shape(x)[:3]

    def valid(self, valid):
        return valid

    def spread(self, values, x):
        return values

    def factors(self, values, x):
        return tf.cast(values, x.dtype)[..., tf.newaxis]

    def mask(self, active):
        return active

    def share(self, scores, tile_size):
        return scores if tile_size == 1 else share_in_tiles(scores, tile_size)

    def mean(self, values, valid=None):
        if valid is None:
            return safe_mean(values)
        counts = tf.reduce_sum(tf.cast(valid, values.dtype), [1, 2])
        sums = tf.reduce_sum(values, [1, 2])
        return safe_mean(tf.math.divide_no_nan(sums, counts))

    def flops(self, count, active, valid):
        return count(active, valid)


DOMAINS = {domain.name: domain for domain in (ImageDomain(), PositionDomain())}
"""Domains by their names."""


def get_domain(domain: str | HaltingDomain) -> HaltingDomain:
    """Returns a domain, given it or its name.

    Raises:
        ValueError: There is none of that name.
    """
    if isinstance(domain, HaltingDomain):
        return domain
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}; got {domain!r}")
    return DOMAINS[domain]
