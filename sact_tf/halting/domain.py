"""What halts: whole images, or positions of them.

A domain says what shape S the values of a halting rule have, and how they and the
features [batch, height, width, channels] of a block go together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf.domains import COUNT
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


def uniform(shape: Sequence[int] | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws uniform noise strictly between 0 and 1, symmetric about 1/2.

    Args:
        shape: Of the result, float32.
        seed: int32 [2]; the same seed gives the same numbers in the same order.
    """
    return tf.random.stateless_uniform(shape, seed) + 2.0**-24  # of [0, 1 - 2**-23]


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

    def share(
        self, scores: tf.Tensor, tile_size: int, valid: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Lets what halts together share its score."""
        return scores

    def noise(self, x: tf.Tensor, seed: tf.Tensor, tile_size: int) -> tf.Tensor:
        """Draws uniform noise of shape S in (0, 1), once for what halts together."""
        return uniform(self.shape(x), seed)

    def total(self, values: tf.Tensor, tile_size: int) -> tf.Tensor:
        """Sums values of S in every image, once for what halts together: [batch]."""
        raise NotImplementedError

    def per_image(self, values: tf.Tensor, valid: tf.Tensor | None) -> tf.Tensor:
        """Averages values of S in every image: [batch]."""
        raise NotImplementedError

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

    def total(self, values, tile_size):
        return values

    def per_image(self, values, valid):
        return values

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

    def share(self, scores, tile_size, valid=None):
        return scores if tile_size == 1 else share_in_tiles(scores, tile_size)

    def noise(self, x, seed, tile_size):
        if tile_size == 1:
            return super().noise(x, seed, tile_size)
        batch, height, width = tf.unstack(self.shape(x))
        tiles = [batch, -(-height // tile_size), -(-width // tile_size)]
        noise = uniform(tiles, seed)
        for axis in (1, 2):
            noise = tf.repeat(noise, tile_size, axis)
        return tf.reshape(noise[:, :height, :width], self.shape(x))

    def total(self, values, tile_size):
        return tf.reduce_sum(values[:, ::tile_size, ::tile_size], [1, 2])

    def per_image(self, values, valid):
        if valid is None:
            return tf.reduce_mean(values, [1, 2])
        counts = tf.reduce_sum(tf.cast(valid, values.dtype), [1, 2])
        return tf.math.divide_no_nan(tf.reduce_sum(values, [1, 2]), counts)

    def mean(self, values, valid=None):
        return safe_mean(values if valid is None else self.per_image(values, valid))

    def flops(self, count, active, valid):
        return count(active, valid)


class GroupDomain(PositionDomain):
    """Positions halt in groups: a grid of equal rectangles divides the map.

    S is [batch, height, width] as of positions; all positions of a group have the same
    value.

    Args:
        grid: Groups along each side, which must divide height and width; 1: all
            positions of an image halt together, whatever its size.
    """

    has_tiles = False

    def __init__(self, grid: int):
        self.grid = COUNT.check(grid, "group_grid")

    def _groups(self, values):
        """Returns a map [batch, height, width] as [batch, grid, h, grid, w]."""
        sides, grid = values.shape[1:3], self.grid
        accepted = f"group_grid must divide the maps of all blocks; got {grid}"
        if any(side is not None and side % grid for side in sides):
            raise ValueError(f"{accepted}, and a map of {sides[0]} x {sides[1]}")
        height, width = tf.unstack(tf.shape(values)[1:3])
        if grid > 1 and None in sides:
            check = tf.debugging.assert_equal(
                [height % grid, width % grid], 0, accepted
            )
            with tf.control_dependencies([check]):
                height = tf.identity(height)
        return tf.reshape(values, [-1, grid, height // grid, grid, width // grid])

    def _spread_groups(self, values, like):
        """Gives all positions of a map [batch, height, width] their group's value."""
        values = values[:, :, tf.newaxis, :, tf.newaxis]
        values = tf.broadcast_to(values, tf.shape(self._groups(like)))
        return tf.ensure_shape(tf.reshape(values, tf.shape(like)), like.shape)

    def share(self, scores, tile_size, valid=None):
        if valid is None:
            means = tf.reduce_mean(self._groups(scores), [2, 4])
        elif self.grid > 1:
            raise ValueError(
                "group_grid must be 1 for images of several sizes in a batch; got "
                f"{self.grid}"
            )
        else:
            inside = tf.where(valid, scores, tf.zeros_like(scores))
            counts = tf.reduce_sum(tf.cast(valid, scores.dtype), [1, 2], True)
            sums = tf.reduce_sum(inside, [1, 2], keepdims=True)
            means = tf.math.divide_no_nan(sums, counts)
        return self._spread_groups(means, scores)

    def noise(self, x, seed, tile_size):
        noise = uniform([tf.shape(x)[0], self.grid, self.grid], seed)
        return self._spread_groups(noise, x[..., 0])

    def total(self, values, tile_size):
        return tf.reduce_sum(self._groups(values)[:, :, 0, :, 0], [1, 2])


DOMAINS = {domain.name: domain for domain in (ImageDomain(), PositionDomain())}
"""Domains by their names."""


def get_domain(
    domain: str | HaltingDomain, group_grid: int | None = None
) -> HaltingDomain:
    """Returns a domain, given it or its name.

    Args:
        domain: The one or the other.
        group_grid: Of positions that halt in groups; see `GroupDomain`.

    Raises:
        ValueError: There is none of that name, or it has no groups.
    """
    if not isinstance(domain, HaltingDomain):
        if domain not in DOMAINS:
            raise ValueError(
                f"domain must be one of {', '.join(DOMAINS)}; got {domain!r}"
            )
        domain = DOMAINS[domain]
    if group_grid is None:
        return domain
    if domain.name != PositionDomain.name:
        raise ValueError(
            f"group_grid must be None with domain={domain.name!r}; got {group_grid}"
        )
    return GroupDomain(group_grid)
