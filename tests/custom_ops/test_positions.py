"""Positions found once, and what computes there: as with the mask they come from."""

import doctest

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import custom_ops
from custom_ops import positions

IMPLEMENTATIONS = ("native", "tensorflow")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    if request.param == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    return request.param


@st.composite
def masks(draw):
    """Bool [batch, height, width], some empty, some all active."""
    shape = draw(st.tuples(*[st.integers(0, 7)] * 3))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return np.random.default_rng(draw(st.integers(0, 1000))).random(shape) < share


def of_masks(max_examples=25, **strategies):
    """Decorates a property that holds of both implementations."""

    def decorate(test):
        test = settings(deadline=None, max_examples=max_examples)(
            given(mask=masks(), **strategies)(test)
        )
        return pytest.mark.parametrize("implementation", IMPLEMENTATIONS)(test)

    return decorate


def skip_without_kernels(implementation):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")


def normal(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


def assert_equal(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@of_masks()
def test_positions_are_where_the_mask_is_set(implementation, mask):
    skip_without_kernels(implementation)
    found = custom_ops.find_positions(mask, implementation)
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(
        np.stack(np.unravel_index(found.positions, mask.shape), -1)
        if mask.size
        else np.zeros([found.positions.shape[0], 3]),
        tf.where(mask),
    )
    dilated = np.zeros(mask.shape, bool)
    for image, y, x in np.argwhere(mask):
        dilated[image, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = True
    np.testing.assert_array_equal(found.touched, np.flatnonzero(dilated))
    rows = np.full(mask.shape, -1)
    rows[dilated] = np.arange(dilated.sum())
    np.testing.assert_array_equal(found.touched_rows, rows)


def runs(mask, implementation, channels, outputs):
    """Every function that takes positions, as functions of a mask or what was found."""
    options = dict(implementation=implementation)
    x = normal(*mask.shape, channels)
    affine = [(normal(n), normal(n, seed=1)) for n in (channels, outputs)]
    filters = normal(3, 3, channels, outputs), normal(3, 3, outputs, channels)
    one_by_one = normal(1, 1, channels, channels), normal(1, 1, outputs, channels)
    weight = tf.where(mask, tf.random.stateless_uniform(mask.shape, [1, 2]), 0.0)
    bias = normal(channels)

    def bottleneck(active, sums):
        middle = [one_by_one[0], filters[0], one_by_one[1]]
        return custom_ops.perforated_bottleneck(
            x, active, affine[0], middle, affine, bias, sums, **options
        )

    def convolution(active, **window):
        with tf.GradientTape() as tape:
            tape.watch([x, filters[0], bias])
            y = custom_ops.perforated_conv2d(
                x, filters[0], active, bias=affine[1][0], **options, **window
            )
        return y, *tape.gradient(y, [x, filters[0]])

    def accumulate(active):
        found = active if isinstance(active, custom_ops.ActivePositions) else None
        return custom_ops.masked_accumulate(x, 2 * x, weight, implementation, found)

    yield lambda active: bottleneck(active, None)
    yield lambda active: bottleneck(active, tf.reduce_sum(x, [1, 2]))
    yield lambda active: custom_ops.perforated_basic_unit(
        x, active, affine[0], filters, affine[1], bias, (0.1, 0.0), **options
    )
    yield convolution
    yield lambda active: convolution(active, dilations=2)
    yield lambda active: convolution(active, padding=[[1, 1], [1, 1]])
    yield accumulate


@of_masks(8, channels=st.integers(1, 20), outputs=st.sampled_from([1, 20]))
def test_found_positions_give_what_their_mask_gives(
    implementation, mask, channels, outputs
):
    skip_without_kernels(implementation)
    found = custom_ops.find_positions(mask, implementation)
    for run in runs(mask, implementation, channels, outputs):
        tf.nest.map_structure(assert_equal, run(found), run(mask))


def test_positions_of_either_implementation_serve_the_other(implementation):
    mask = np.random.default_rng(0).random([2, 5, 6]) < 0.4
    other = next(name for name in IMPLEMENTATIONS if name != implementation)
    skip_without_kernels(other)
    found = custom_ops.find_positions(mask, other)
    for run in runs(mask, implementation, 5, 6):
        tf.nest.map_structure(assert_equal, run(found), run(mask))


def test_a_step_in_a_graph_of_unknown_sizes(implementation):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 3], tf.float64),
            tf.TensorSpec([None, None, None], tf.bool),
        ]
    )
    def step(x, mask):
        found = custom_ops.find_positions(mask, implementation)
        score = custom_ops.perforated_conv2d(
            x, normal(3, 3, 3, 1), found, implementation=implementation
        )
        total = custom_ops.masked_accumulate(
            x, x, tf.cast(mask, tf.float32), implementation, found
        )
        return score, total

    for shape in ((2, 5, 4), (1, 3, 8)):
        x, mask = normal(*shape, 3), np.random.default_rng(1).random(shape) < 0.5
        score, total = step(x, mask)
        kept = mask[..., np.newaxis]
        dense = tf.nn.conv2d(x, normal(3, 3, 3, 1), 1, "SAME")
        np.testing.assert_allclose(score, dense * kept, atol=1e-12)
        np.testing.assert_allclose(total, x * (1 + kept), atol=1e-12)


def test_masks_of_numbers_and_found_ones(implementation):
    numbers = tf.constant([[[0.0, 2.0], [-1.0, 0.0]]])
    found = custom_ops.find_positions(numbers, implementation)
    np.testing.assert_array_equal(found.positions, [1, 2])
    assert custom_ops.find_positions(found, implementation) is found
    with pytest.raises(ValueError, match="mask must be"):
        custom_ops.find_positions(numbers[0], implementation)
    with pytest.raises(tf.errors.InvalidArgumentError, match="mask must be finite"):
        custom_ops.find_positions(numbers / 0.0, implementation)


def test_positions_of_another_mask(implementation):
    x, filters = normal(1, 4, 4, 3), normal(3, 3, 3, 2)
    found = custom_ops.find_positions(np.ones([1, 5, 4], bool), implementation)
    with pytest.raises(ValueError, match="mask must have 4"):
        custom_ops.perforated_conv2d(x, filters, found, implementation=implementation)


@pytest.mark.parametrize(
    "field, value",
    [
        ("positions", [0, 1, 99]),
        ("positions", [1, 0]),
        ("positions", [-1]),
        ("touched", [3, 2]),
        ("touched", [16]),
        ("touched_rows", np.full([1, 4, 4], 17)),
        ("touched_rows", np.full([1, 4, 3], 0)),
        ("mask", np.ones([1, 4, 3], bool)),
    ],
)
def test_made_up_positions_are_errors(field, value):
    """Kernels write where positions say."""
    skip_without_kernels("native")
    found = custom_ops.find_positions(np.eye(4)[np.newaxis], "native")
    dtype = tf.bool if field == "mask" else tf.int64
    made_up = found._replace(**{field: tf.constant(value, dtype)})
    x, weight = normal(1, 4, 4, 3), tf.ones([1, 4, 4])
    if field == "mask":
        weight = tf.ones([1, 4, 3])
    with pytest.raises(tf.errors.InvalidArgumentError, match="positions|weight must"):
        custom_ops.masked_accumulate(x, x, weight, "native", made_up)


def test_doctests():
    assert doctest.testmod(positions).failed == 0
