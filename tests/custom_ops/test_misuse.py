"""What the op is not made for is refused by name, and the twin refuses what it does."""

import numpy as np
import pytest
import tensorflow as tf

import custom_ops

X = np.random.default_rng(0).normal(size=[2, 5, 5, 3]).astype(np.float32)
FILTERS = np.random.default_rng(1).normal(size=[3, 3, 3, 4]).astype(np.float32)
MASK = np.random.default_rng(2).random([2, 5, 5]) < 0.6
IMPLEMENTATIONS = ("native", "tensorflow")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    if request.param == "native" and custom_ops.load() is None:
        pytest.skip("there are no native kernels")
    return request.param


@pytest.mark.parametrize(
    "value", [None, "2", 1.5, np.nan, np.inf, [1], (1, "a"), 2**40, 0, {}, [[1, 1]]]
)
@pytest.mark.parametrize("name", ["strides", "dilations"])
def test_strides_of_wrong_types(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be one or two integers from 1"):
        custom_ops.perforated_conv2d(X, FILTERS, MASK, **{name: value})


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1, "FULL", b"SAME", [1, 1], [[1, 1]], [["1", 1], [1, 1]]),
        *([[1, 1], [1, 1.5]], [[1, 1], [1, None]], [[np.nan, 1], [1, 1]]),
        *([[2**40, 1], [1, 1]], [[-1, 1], [1, 1]], {}, [[], []]),
    ],
)
def test_padding_of_wrong_types(value):
    with pytest.raises(ValueError, match="^padding must be 'SAME', 'VALID' or"):
        custom_ops.perforated_conv2d(X, FILTERS, MASK, padding=value)


def test_numbers_of_numpy_are_numbers(implementation):
    run = custom_ops.perforated_conv2d
    expected = run(X, FILTERS, MASK, 1, [[1, 1], [1, 1]], implementation=implementation)
    for strides in (np.int64(1), np.array([1, 1]), 1.0, (1, np.int32(1))):
        got = run(
            X,
            FILTERS,
            MASK,
            strides,
            np.ones([2, 2], np.int64),
            implementation=implementation,
        )
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("value", [None, "0.5", np.nan, -0.1, 1.1, [0.1, 0.2]])
def test_slopes_of_wrong_types(value):
    with pytest.raises(ValueError, match="^input_slope must lie in"):
        custom_ops.perforated_conv2d(X, FILTERS, MASK, input_slope=value)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("input", None), ("filters", None), ("bias", object())),
        *(("input_scale", {}), ("input_shift", "abc"), ("filters", [[1], [2, 3]])),
    ],
)
def test_tensors_that_are_none(name, value):
    arguments = dict(input=X, filters=FILTERS, mask=MASK)
    with pytest.raises(ValueError, match=f"^{name} must be"):
        custom_ops.perforated_conv2d(**{**arguments, name: value})


def at_run_time(implementation, **values):
    """Runs with sizes that are not known while the function is traced."""
    values = {"input": X, "filters": FILTERS, "mask": MASK, **values}
    signature = {
        name: tf.TensorSpec([None] * np.ndim(value), np.asarray(value).dtype)
        for name, value in values.items()
    }

    @tf.function(input_signature=[signature], autograph=False)
    def run(tensors):
        return custom_ops.perforated_conv2d(**tensors, implementation=implementation)

    return run({name: tf.constant(value) for name, value in values.items()})


@pytest.mark.parametrize(
    "changed",
    [
        dict(filters=FILTERS[:, :, :2]),
        dict(mask=MASK[:, :4]),
        dict(mask=MASK[:1]),
        dict(mask=np.ones([3, 5, 5], bool)),
        dict(bias=np.ones([1], np.float32)),
        dict(bias=np.ones([7], np.float32)),
        dict(input_scale=np.ones([1], np.float32)),
        dict(input_shift=np.ones([2], np.float32)),
    ],
)
def test_sizes_that_do_not_fit_at_run_time(implementation, changed):
    """One channel would be broadcast by plain operations; that is not what it means."""
    with pytest.raises(tf.errors.InvalidArgumentError):
        at_run_time(implementation, **changed)
    at_run_time(implementation)


def test_no_output_channels(implementation):
    run = custom_ops.perforated_conv2d
    filters = FILTERS[..., :0]
    for got in (
        run(X, filters, MASK, implementation=implementation),
        run(X, filters, MASK[0], 1, "SAME", np.zeros([0], np.float32), "relu",
            implementation=implementation),
        at_run_time(implementation, filters=filters),
    ):  # fmt: skip
        assert got.shape == [2, 5, 5, 0] and got.dtype == tf.float32


def derivatives(implementation, dtype=tf.float64):
    """Second derivatives, and one in forward mode, by every input."""
    tensors = [tf.constant(v, dtype) for v in (X, FILTERS, [0.1, -0.2, 0.3, 0.4])]
    tensors += [tf.constant(v, dtype) for v in ([1.0, 0.5, -2.0], [0.3, 0.1, 0.0])]

    def run():
        x, filters, bias, scale, shift = tensors
        y = custom_ops.perforated_conv2d(
            x,
            filters,
            MASK[:, ::2, :3],
            (2, 1),
            [[1, 1], [0, 0]],
            bias,
            "relu",
            input_scale=scale,
            input_shift=shift,
            input_slope=0.2,
            implementation=implementation,
        )
        return tf.reduce_sum(tf.sin(y))

    with tf.GradientTape() as outer:
        outer.watch(tensors)
        with tf.GradientTape() as inner:
            inner.watch(tensors)
            value = run()
        first = inner.gradient(value, tensors)
        total = tf.add_n([tf.reduce_sum(tf.square(g)) for g in first])
    second = outer.gradient(total, tensors)
    with tf.autodiff.ForwardAccumulator(
        tensors, [tf.ones_like(t) for t in tensors]
    ) as accumulator:
        value = run()
    return first, second, accumulator.jvp(value)


@pytest.mark.skipif(custom_ops.load() is None, reason="there are no native kernels")
def test_second_and_forward_derivatives_are_those_of_plain_operations():
    for got, expected in zip(*map(derivatives, IMPLEMENTATIONS)):
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9),
            got,
            expected,
        )
    first, _, forward = derivatives("native")
    total = tf.add_n([tf.reduce_sum(g) for g in first])
    np.testing.assert_allclose(forward, total, rtol=1e-9)


@pytest.mark.skipif(custom_ops.load() is None, reason="there are no native kernels")
def test_xla_is_told_what_it_can_compile():
    def compiled(implementation):
        @tf.function(jit_compile=True, autograph=False)
        def run(x):
            return custom_ops.perforated_conv2d(
                x, FILTERS, MASK, implementation=implementation
            )

        return run(tf.constant(X))

    expected = custom_ops.perforated_conv2d(X, FILTERS, MASK)
    for implementation in ("auto", "tensorflow"):
        np.testing.assert_allclose(compiled(implementation), expected, atol=1e-5)
    with pytest.raises(RuntimeError, match="XLA .*; use implementation='tensorflow'"):
        compiled("native")
