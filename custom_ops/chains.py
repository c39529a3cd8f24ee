"""Gradients of chains of convolutions at active positions, by one native operation."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from custom_ops.implementation import native_library


def chain_gradient(
    x: tf.Tensor,
    mask: tf.Tensor,
    found: Sequence[tf.Tensor],
    gradient: tf.Tensor,
    filters: Sequence[tf.Tensor],
    scales: Sequence[tf.Tensor],
    shifts: Sequence[tf.Tensor],
    slopes: Sequence[float],
    shortcut: bool,
    sums_gradient: tf.Tensor | None = None,
):
    """Returns the gradients of a chain of convolutions at active positions, or None.

    Args:
        x: Float [batch, height, width, channels], the chain's input.
        mask: Bool [batch, height, width], where its last convolution runs; the others
            run where the next one reads.
        found: What `find_positions` found in the mask, three tensors or none.
        gradient: Of the chain's output, [batch, height, width, out].
        filters: Of each convolution, of an odd side, padded so that it keeps size.
        scales: Of what each convolution reads, [channels], or [0]: none.
        shifts: The same, added after the scale.
        slopes: Of the activation max(v, slope * v) that follows.
        shortcut: Whether the output is the sum of the chain and x.
        sums_gradient: Of the output's sums over positions, [batch, out], or None.

    Returns:
        The gradients of x, of filters, scales and shifts (a list of each), and of a
        bias [out] after the last convolution. None: there is no kernel.
    """
    library = native_library("auto", "PerforatedChainGradient", x.dtype)
    if library is None or len(found) not in (0, 3):
        return None
    none = tf.zeros([0], x.dtype)
    return library.perforated_chain_gradient(
        x,
        mask,
        gradient,
        none if sums_gradient is None else sums_gradient,
        filters,
        scales,
        shifts,
        found,
        slopes=list(slopes),
        shortcut=shortcut,
    )
