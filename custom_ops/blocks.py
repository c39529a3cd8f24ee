"""A whole block of residual units whose positions halt, as one operation.

A block of Spatially Adaptive Computation Time runs dozens of units, each with a head,
the halting rule and a sum. On small maps, launching all of these takes as long as a
tenth of the arithmetic. Here they are one native operation, which finds positions once
and lets them become fewer; the twin in plain operations says what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework import auto_control_deps_utils
from tensorflow.python.ops import gen_resource_variable_ops, resource_variable_ops

from custom_ops.convolution import activate, perforated_conv2d
from custom_ops.implementation import native_library
from custom_ops.positions import find_positions, touched_by
from custom_ops.precision import check_precision
from custom_ops.units import (
    fold_batch_norm,
    masked_accumulate,
    perforated_basic_unit,
    perforated_bottleneck,
)


class Norm(NamedTuple):
    """A batch normalization with stored moments, and max(v, slope * v) after it.

    Attributes:
        vectors: Gamma, beta, moving mean and moving variance, [channels] each; tensors
            or variables, as all parameters of units and heads.
        epsilon: Added to the variance.
        slope: In [0, 1]; 0: ReLU, 1: no activation.
    """

    vectors: Sequence[tf.Tensor]
    epsilon: float
    slope: float

    def folded(self, implementation: str = "auto") -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and shift, [channels] each."""
        return fold_batch_norm(*self.vectors, self.epsilon, implementation)


class UnitParameters(NamedTuple):
    """A pre-activation unit that keeps shape.

    Attributes:
        norms: One before each convolution.
        filters: Of a bottleneck [1, 1, channels, c], [3, 3, c, d], [1, 1, d, channels];
            of a basic unit [3, 3, channels, c], [3, 3, c, channels].
        bias: [channels], added to the residual.
    """

    norms: Sequence[Norm]
    filters: Sequence[tf.Tensor]
    bias: tf.Tensor


class HeadParameters(NamedTuple):
    """What scores positions (SACT, eq. 14).

    Attributes:
        local_norm: Before the convolution.
        filters: [3, 3, channels, 1].
        bias: [1].
        pooled_norm: Of the mean of an image's features.
        pooled_filters: [1, 1, channels, 1].
    """

    local_norm: Norm
    filters: tf.Tensor
    bias: tf.Tensor
    pooled_norm: Norm
    pooled_filters: tf.Tensor


class BlockResults(NamedTuple):
    """What a block computes.

    Attributes:
        output: [batch, height, width, channels], the weighted sum of its units'.
        remainder: float32 [batch, height, width], R (SACT eq. 8).
        num_units: int32, the same shape, N (eq. 7); the first unit counts.
        weights: float32 [batch, height, width, units], of the units' outputs.
        scores: float32 [units - 1, batch, height, width]; 0 where a unit does not run.
        counts: int64 [batch, units - 1, 2]: at how many positions each later unit runs,
            and how many a 3x3 convolution reads there.
    """

    output: tf.Tensor
    remainder: tf.Tensor
    num_units: tf.Tensor
    weights: tf.Tensor
    scores: tf.Tensor
    counts: tf.Tensor


def perforated_block(
    x: tf.Tensor,
    sums: tf.Tensor,
    units: Sequence[UnitParameters],
    heads: Sequence[HeadParameters],
    epsilon: float,
    imposed: tf.Tensor | None = None,
    implementation: str = "auto",
    precision: str = "float32",
) -> BlockResults:
    """Runs a block in inference, from its first unit's output on (SACT, algorithm 2).

    Args:
        x: Output of the first unit, float32 or float64 [batch, height, width,
            channels].
        sums: Its sums over positions, [batch, channels].
        units: The units after the first, all of one kind and one set of constants.
        heads: Of all units but the last: as many as `units`.
        epsilon: A position halts where its scores add up to 1 - epsilon.
        imposed: int32 [height, width] or with batch before: how many units run, at
            least 1, whatever the scores say; for benchmarks. None: scores decide.
        implementation: As in `perforated_conv2d`.
        precision: As in `perforated_conv2d`, of the units' convolutions.

    Raises:
        ValueError: On other numbers of units and heads, units or heads that differ in
            more than their weights, or a precision that does not fit.
        tf.errors.InvalidArgumentError: If a size does not fit; names the argument.
    """
    x = tf.convert_to_tensor(x)
    is_rounded = check_precision(precision, x.dtype)
    constants = _constants(units, heads)
    limit = 1.0 - epsilon
    library = native_library(implementation, "PerforatedBlock", x.dtype)
    if library is None:
        return _twin(x, sums, units, heads, limit, imposed, implementation, precision)
    return BlockResults(
        *library.perforated_block(
            x,
            sums,
            tf.zeros([0], tf.int32) if imposed is None else imposed,
            [_value_or_variable(value) for value in _flat(units, heads)],
            convolutions=len(units[0].filters),
            slopes=[norm.slope for norm in constants],
            epsilons=[norm.epsilon for norm in constants],
            limit=limit,
            bfloat16_factors=is_rounded,
        )
    )


def _value_or_variable(value):
    """Returns what the native operation takes: of a variable its handle.

    A block has hundreds of them, and an operation that reads one takes microseconds.
    """
    if not isinstance(value, resource_variable_ops.BaseResourceVariable):
        return tf.convert_to_tensor(value)
    resource_variable_ops.variable_accessed(value)  # as when it is read
    return value.handle


def are_alike(units: Sequence[UnitParameters], heads: Sequence[HeadParameters]) -> bool:
    """Whether units and heads have the same constants, and so can be one operation."""
    return len(_kinds(units, heads)) <= 1


def _kinds(units, heads):
    return {
        (
            len(unit.filters),
            *((norm.epsilon, norm.slope) for norm in _norms(unit, head)),
        )
        for unit, head in zip(units, heads)
    }


def _norms(unit, head):
    return [*unit.norms, head.local_norm, head.pooled_norm]


def _constants(units, heads):
    """Returns the normalizations of any unit and head, whose constants are all alike.

    Raises:
        ValueError: They are not.
    """
    if not units or len(units) != len(heads):
        raise ValueError(
            "units and heads must be as many, and one at least; got "
            f"{len(units)} and {len(heads)}"
        )
    kinds = _kinds(units, heads)
    if len(kinds) > 1:
        raise ValueError(
            "units and heads must have the same number of convolutions, epsilons and "
            f"slopes; got {sorted(kinds)}"
        )
    return _norms(units[0], heads[0])


def _flat(units, heads):
    """The parameters in the order that the native operation reads them."""
    flat = []
    for unit in units:
        for norm, filters in zip(unit.norms, unit.filters):
            flat += [*norm.vectors, filters]
        flat.append(unit.bias)
    for head in heads:
        flat += [*head.local_norm.vectors, head.filters, head.bias]
        flat += [*head.pooled_norm.vectors, head.pooled_filters]
    return flat


def _like(flat, units, heads):
    """Undoes `_flat`: the same units and heads with other parameters."""
    values = iter(flat)

    def take(count):
        return [next(values) for _ in range(count)]

    def norm(like):
        return like._replace(vectors=take(4))

    new_units, new_heads = [], []
    for unit in units:
        pairs = [(norm(like), next(values)) for like in unit.norms]
        norms, filters = zip(*pairs)
        new_units.append(UnitParameters(norms, filters, next(values)))
    for head in heads:
        local, (filters, bias) = norm(head.local_norm), take(2)
        pooled, (pooled_filters,) = norm(head.pooled_norm), take(1)
        new_heads.append(HeadParameters(local, filters, bias, pooled, pooled_filters))
    return new_units, new_heads


def _twin(x, sums, units, heads, limit, imposed, implementation, precision):
    """The block in operations of this package."""
    options = dict(implementation=implementation, precision=precision)
    shape = tf.shape(x)[:3]
    active = tf.ones(shape, tf.bool)
    cumulative, remainder = tf.zeros(shape), tf.ones(shape)
    num_units, output = tf.zeros(shape, tf.int32), None
    all_weights, all_scores, counts = [], [], []
    for k in range(len(units) + 1):
        found = find_positions(active, implementation)
        if k:
            x, sums = _run_unit(x, found, units[k - 1], sums, options)
            counts.append(_count(active))
        if k < len(heads):
            score = tf.sigmoid(_logits(x, found, sums, heads[k], implementation))
            if imposed is not None:
                halts = tf.broadcast_to(imposed, shape) <= k + 1
                score = tf.where(halts, 1.0, 0.0) + 1e-6 * score
            score = tf.where(active, score, tf.zeros_like(score))
            all_scores.append(score)
            cumulative += score
            goes_on = active & (cumulative < limit)
        else:
            score, goes_on = tf.zeros(shape), tf.zeros_like(active)
        weight = tf.where(active, remainder, tf.zeros_like(remainder))
        weight = tf.where(goes_on, score, weight)
        remainder = tf.where(goes_on, remainder - score, remainder)
        num_units += tf.cast(active, tf.int32)
        all_weights.append(weight)
        if output is None:
            output = tf.cast(weight, x.dtype)[..., tf.newaxis] * x
        else:
            output = masked_accumulate(output, x, weight, implementation, found)
        active = goes_on
    return BlockResults(
        output,
        remainder,
        num_units,
        tf.stack(all_weights, -1),
        tf.stack(all_scores),
        tf.stack(counts, 1),
    )


def _run_unit(x, found, unit, sums, options):
    norms = [norm.folded(options["implementation"]) for norm in unit.norms]
    slopes = [norm.slope for norm in unit.norms]
    if len(unit.filters) == 3:
        return perforated_bottleneck(
            *(x, found, norms[0], unit.filters, norms[1:], unit.bias, sums), **options
        )
    y = perforated_basic_unit(
        *(x, found, norms[0], unit.filters, norms[1], unit.bias, slopes), **options
    )
    return y, tf.reduce_sum(y, [1, 2])


def _logits(x, found, sums, head, implementation):
    """Logits at found positions, float32 [batch, height, width]."""
    scale, shift = head.local_norm.folded(implementation)
    local = perforated_conv2d(
        x,
        head.filters,
        found,
        bias=head.bias,
        input_scale=scale,
        input_shift=shift,
        input_slope=head.local_norm.slope,
        implementation=implementation,
    )
    scale, shift = head.pooled_norm.folded(implementation)
    count = tf.cast(tf.reduce_prod(tf.shape(x)[1:3]), x.dtype)
    pooled = activate(sums / count * scale + shift, head.pooled_norm.slope)
    pooled = tf.matmul(pooled, head.pooled_filters[0, 0])
    return tf.cast(local[..., 0] + pooled[:, tf.newaxis], tf.float32)


def _count(active):
    """How many positions are active in each image, and how many a 3x3 reads there."""
    read = touched_by(active, 3, 3)[1] >= 0
    both = tf.cast(tf.stack([active, read], -1), tf.int64)
    return tf.reduce_sum(both, [1, 2])


auto_control_deps_utils.register_read_only_resource_op("PerforatedBlock")


@tf.RegisterGradient("PerforatedBlock")
def _gradient(op, *gradients):
    """Differentiates the twin, whose units are native where they can be."""
    x, sums, imposed, *flat = op.inputs
    flat = [
        gen_resource_variable_ops.read_variable_op(value, x.dtype)
        if value.dtype == tf.resource
        else value
        for value in flat
    ]
    convolutions = op.get_attr("convolutions")
    norms = [
        Norm([], epsilon, slope)
        for epsilon, slope in zip(op.get_attr("epsilons"), op.get_attr("slopes"))
    ]
    unit = UnitParameters(norms[:convolutions], [None] * convolutions, None)
    head = HeadParameters(norms[-2], None, None, norms[-1], None)
    num_heads = op.outputs[4].shape[0]  # of scores
    units, heads = [unit] * num_heads, [head] * num_heads
    is_rounded = op.get_attr("bfloat16_factors")
    with tf.GradientTape() as tape:
        tape.watch([x, sums, *flat])
        results = _twin(
            x,
            sums,
            *_like(flat, units, heads),
            op.get_attr("limit"),
            None if imposed.shape.rank == 1 else imposed,
            "auto",
            "bfloat16" if is_rounded else "float32",
        )
    of_floats = [
        (result, gradient)
        for result, gradient in zip(results, gradients)
        if gradient is not None and result.dtype.is_floating
    ]
    to_x, to_sums, *to_flat = tape.gradient(
        [result for result, _ in of_floats],
        [x, sums, *flat],
        [gradient for _, gradient in of_floats],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return to_x, to_sums, None, *to_flat
