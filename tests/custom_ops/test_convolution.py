"""Perforated convolution against the dense one times the mask; both implementations."""

import itertools
import os

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import custom_ops

IMPLEMENTATIONS = ("native", "tensorflow")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    skip_without_compiler(request.param)
    return request.param


def skip_without_compiler(implementation):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")


def normal(*shape, seed=0, dtype=np.float64):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def random_mask(*shape, share=0.5, seed=1):
    return tf.constant(np.random.default_rng(seed).random(shape) < share)


def dense(x, filters, mask, strides=1, padding="SAME", dilations=1, bias=None):
    """The definition: the dense convolution, zeroed outside the mask."""
    if not isinstance(padding, str):
        x, padding = tf.pad(x, [[0, 0], *padding, [0, 0]]), "VALID"
    y = tf.nn.conv2d(x, filters, strides, padding, dilations=dilations)
    if bias is not None:
        y += bias
    return y * tf.cast(mask, y.dtype)[..., tf.newaxis]


@st.composite
def cases(draw):
    """Arguments of a random perforated convolution."""
    size = st.integers(1, 9)
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    if draw(st.booleans()):
        strides, dilations = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), 1
    else:
        strides, dilations = 1, draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    side = st.integers(0, 2)
    pad = st.tuples(st.tuples(side, side), st.tuples(side, side))
    padding = draw(st.one_of(st.just("SAME"), st.just("VALID"), pad))
    reach = [
        (k - 1) * d + 1
        for k, d in zip(kernel, dilations if isinstance(dilations, tuple) else (1, 1))
    ]
    least = reach if padding == "VALID" else (1, 1)
    if not isinstance(padding, str):
        least = [max(1, r - sum(p)) for r, p in zip(reach, padding)]
    sides = [draw(size) + low - 1 for low in least]
    batch, inputs, outputs = draw(
        st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40))
    )
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    return (
        [batch, *sides, inputs],
        [*kernel, inputs, outputs],
        dict(strides=strides, padding=padding, dilations=dilations),
        share,
    )


def check_case(case):
    shape, filters_shape, window, share = case
    x, filters = normal(*shape), normal(*filters_shape, seed=1)
    bias = normal(filters_shape[-1], seed=2)
    ones = tf.ones([1, 1, 1])
    mask = random_mask(*dense(x, filters, ones, **window).shape[:3], share=share)
    expected = dense(x, filters, mask, bias=bias, **window)
    for implementation in IMPLEMENTATIONS:
        if implementation == "native" and custom_ops.load() is None:
            continue
        y = custom_ops.perforated_conv2d(
            x, filters, mask, bias=bias, implementation=implementation, **window
        )
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_equals_dense_times_mask(case):
    check_case(case)


@pytest.mark.long
@settings(max_examples=10_000, deadline=None)
@given(cases())
def test_equals_dense_times_mask_in_ten_thousand_cases(case):
    check_case(case)


@pytest.mark.parametrize("strides, padding", [(1, "SAME"), (2, "VALID")])
def test_gradients_are_those_of_dense(implementation, strides, padding):
    x, filters, bias = normal(2, 7, 6, 5), normal(3, 3, 5, 35, seed=1), normal(35)
    scale, shift = normal(5, seed=3), normal(5, seed=4)
    size = dense(x, filters, tf.ones([1, 1, 1]), strides, padding).shape[:3]
    mask = random_mask(*size)

    def gradients(run):
        with tf.GradientTape() as tape:
            tape.watch([x, filters, bias, scale, shift])
            y = run()
            loss = tf.reduce_sum(tf.sin(y))
        return tape.gradient(loss, [x, filters, bias, scale, shift])

    expected = gradients(
        lambda: tf.nn.relu(
            dense(
                tf.nn.leaky_relu(x * scale + shift, 0.1),
                filters,
                mask,
                strides,
                padding,
                bias=bias,
            )
        )
    )
    got = gradients(
        lambda: custom_ops.perforated_conv2d(
            x,
            filters,
            mask,
            strides,
            padding,
            bias,
            "relu",
            input_scale=scale,
            input_shift=shift,
            input_slope=0.1,
            implementation=implementation,
        )
    )
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("dilations", [1, 2])
def test_numerical_gradients(implementation, dilations):
    mask = random_mask(2, 4, 5)

    @tf.function  # it is called some hundred times
    def run(x, filters, bias):
        return custom_ops.perforated_conv2d(
            x,
            filters,
            mask,
            bias=bias,
            dilations=dilations,
            implementation=implementation,
        )

    theory, numbers = tf.test.compute_gradient(
        run, [normal(2, 4, 5, 3), normal(3, 3, 3, 4, seed=1), normal(4)], delta=1e-6
    )
    for a, b in zip(theory, numbers):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3)


def test_what_no_active_position_reads_has_no_effect(implementation):
    """NaN in skipped inputs leaks neither into the output nor into gradients."""
    mask = np.zeros([1, 8, 8], bool)
    mask[0, 2:4, 3] = True
    read = np.zeros([1, 8, 8], bool)
    read[0, 1:5, 2:5] = True
    clean = normal(1, 8, 8, 3)
    poisoned = tf.where(read[..., None], clean, np.nan)
    filters = normal(3, 3, 3, 2, seed=1)
    results = []
    for x in (clean, poisoned):
        with tf.GradientTape() as tape:
            tape.watch([x, filters])
            y = custom_ops.perforated_conv2d(
                x, filters, mask, implementation=implementation
            )
        results.append([y, *tape.gradient(y, [x, filters])])
    for a, b in zip(*results):
        assert np.isfinite(b).all()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (1, 5, 5, 3)])
def test_empty_masks_and_batches(implementation, shape):
    mask = np.zeros(shape[:3], bool)
    y = custom_ops.perforated_conv2d(
        normal(*shape), normal(3, 3, 3, 4), mask, implementation=implementation
    )
    np.testing.assert_array_equal(y, np.zeros([*shape[:3], 4]))


def test_no_channels(implementation):
    y = custom_ops.perforated_conv2d(
        normal(1, 5, 5, 0),
        normal(3, 3, 0, 4),
        tf.ones([1, 5, 5], tf.bool),
        bias=normal(4),
        implementation=implementation,
    )
    np.testing.assert_array_equal(y, tf.broadcast_to(normal(4), [1, 5, 5, 4]))


@pytest.mark.long
def test_more_elements_than_31_bits_count(implementation):
    side, channels = 8200, 32  # 2.15e9 elements
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 16e9:
        pytest.skip("needs 16 GB of free memory")
    x = tf.ones([1, side, side, channels])
    mask = np.zeros([1, side, side], bool)
    mask[0, 0, 0] = mask[0, -1, -1] = True
    filters = tf.ones([3, 3, channels, 1])
    y = custom_ops.perforated_conv2d(x, filters, mask, implementation=implementation)
    assert y[0, 0, 0, 0] == y[0, -1, -1, 0] == 4 * channels
    assert tf.reduce_sum(y) == 8 * channels


def test_masks_of_numbers_and_one_for_all_images(implementation):
    x, filters = normal(2, 5, 4, 3), normal(3, 3, 3, 4)
    numbers = tf.constant([0.0, 2.0, -1.0, 0.0] * 5, shape=[5, 4])
    y = custom_ops.perforated_conv2d(x, filters, numbers, implementation=implementation)
    np.testing.assert_allclose(
        y, dense(x, filters, (numbers != 0)[tf.newaxis]), atol=1e-12
    )


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_relu_of_numbers_that_are_not_finite(implementation, value):
    x, filters = tf.fill([1, 2, 2, 40], value), tf.ones([1, 1, 40, 40])
    y = custom_ops.perforated_conv2d(
        x,
        filters,
        tf.ones([1, 2, 2]),
        activation="relu",
        implementation=implementation,
    )
    np.testing.assert_array_equal(y, np.full([1, 2, 2, 40], np.maximum(value, 0)))


def test_activation_leaves_inactive_positions_zero(implementation):
    x, filters, mask = normal(1, 4, 4, 2), normal(1, 1, 2, 3), random_mask(1, 4, 4)
    y = custom_ops.perforated_conv2d(
        x, filters, mask, activation=tf.sigmoid, implementation=implementation
    )
    everywhere = tf.sigmoid(tf.nn.conv2d(x, filters, 1, "SAME"))
    expected = tf.where(mask[..., None], everywhere, 0)
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_follows_changed_weights(implementation):
    """Packed weights are used again only while they are the same."""
    x, mask = normal(1, 4, 4, 3), np.ones([1, 4, 4], bool)
    filters = tf.Variable(normal(3, 3, 3, 4))

    @tf.function
    def run():
        return custom_ops.perforated_conv2d(
            x, filters, mask, implementation=implementation
        )

    for change in (
        lambda: filters.assign_add(tf.ones_like(filters)),
        lambda: filters.assign(2.0 * filters),
        lambda: filters[0, 0].assign(tf.zeros([3, 4], tf.float64)),
        lambda: filters.scatter_nd_update([[1, 1]], [tf.ones([3, 4], tf.float64)]),
    ):
        run()
        change()
        np.testing.assert_allclose(run(), dense(x, filters, mask), atol=1e-12)


def test_unknown_sizes_in_a_graph(implementation):
    @tf.function(
        input_signature=[
            tf.TensorSpec([None] * 4, tf.float64),
            tf.TensorSpec([None] * 3, tf.bool),
        ]
    )
    def run(x, mask):
        return custom_ops.perforated_conv2d(
            x, normal(3, 3, 3, 4), mask, 2, implementation=implementation
        )

    for height, width in itertools.product((5, 6), (3, 8)):
        x = normal(2, height, width, 3)
        mask = random_mask(2, -(-height // 2), -(-width // 2))
        np.testing.assert_allclose(
            run(x, mask), dense(x, normal(3, 3, 3, 4), mask, 2), atol=1e-12
        )


def test_same_result_every_time():
    skip_without_compiler("native")
    x, filters = normal(1, 40, 40, 64, dtype=np.float32), normal(3, 3, 64, 64)
    filters, mask = tf.cast(filters, tf.float32), random_mask(1, 40, 40)
    first = custom_ops.perforated_conv2d(x, filters, mask)
    for _ in range(5):
        again = custom_ops.perforated_conv2d(x, filters, mask)
        np.testing.assert_array_equal(first, again)


X, F = np.zeros([1, 4, 5, 3], np.float32), np.zeros([3, 3, 3, 2], np.float32)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(input=X[0]), "input must be .*batch"),
        (dict(input=np.zeros([1, 4, 5, 3], np.int32)), "input must be one of.*int32"),
        (dict(filters=F[..., :1, :]), "filters must have 3"),
        (dict(filters=tf.constant(F, tf.float64)), "filters must be float32"),
        (dict(mask=np.ones([1, 4, 4], bool)), "mask must have 5"),
        (dict(mask=np.ones([2, 4, 5], bool)), "mask must have 1"),
        (dict(mask=np.ones([4], bool)), "mask must be"),
        (dict(mask=np.full([4, 5], "a")), "mask must be bool or numbers"),
        (dict(bias=np.zeros([3], np.float32)), "bias must have 2"),
        (dict(strides=0), "strides must be.*0"),
        (dict(dilations=(1, 2, 3)), "dilations must be"),
        (dict(padding="FULL"), "padding must be.*'FULL'"),
        (dict(activation="gelu"), "activation must be.*'gelu'"),
        (dict(implementation="fast"), "implementation must be one of.*'fast'"),
        (dict(input_slope=2.0), "input_slope must lie in"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    good = dict(input=X, filters=F, mask=np.ones([1, 4, 5], bool))
    with pytest.raises(ValueError, match=message):
        custom_ops.perforated_conv2d(**{**good, **arguments})


def test_errors_of_sizes_known_late(implementation):
    @tf.function(input_signature=[tf.TensorSpec([None] * 3, tf.bool)])
    def run(mask):
        x = tf.ensure_shape(tf.reshape(X, [1, -1, 5, 3]), [None] * 3 + [3])
        return custom_ops.perforated_conv2d(x, F, mask, implementation=implementation)

    with pytest.raises(tf.errors.InvalidArgumentError, match="mask must"):
        run(np.ones([1, 4, 9], bool))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_mask_that_is_not_finite(value):
    with pytest.raises(tf.errors.InvalidArgumentError, match="mask must be finite"):
        custom_ops.perforated_conv2d(X, F, np.full([4, 5], value, np.float32))
