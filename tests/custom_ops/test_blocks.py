"""A block as one native operation, against the same in single operations."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import custom_ops
from custom_ops import HeadParameters, Norm, UnitParameters

pytestmark = pytest.mark.skipif(
    custom_ops.load() is None, reason="the native kernels can not be compiled here"
)


class Made:
    """Random parameters of a block, float64."""

    def __init__(self, seed, channels, inner, num_units, convolutions, slope=0.0):
        self._random = np.random.default_rng(seed)
        self.channels, self.inner, self.slope = channels, inner, slope
        one = [self.bottleneck, self.basic][convolutions == 2]
        self.units = [one() for _ in range(num_units - 1)]
        self.heads = [self.head() for _ in range(num_units - 1)]

    def normal(self, *shape):
        return tf.constant(self._random.normal(size=shape))

    def filters(self, *shape):
        return self.normal(*shape) / np.sqrt(np.prod(shape[:3]))

    def norm(self, channels, slope=0.0, epsilon=1e-3):
        gamma, beta, mean = (self.normal(channels) for _ in range(3))
        return Norm([gamma, beta, mean, self.normal(channels) ** 2], epsilon, slope)

    def bottleneck(self):
        c, n = self.channels, self.inner
        norms = [self.norm(c), self.norm(n), self.norm(n)]
        sizes = [(1, 1, c, n), (3, 3, n, n), (1, 1, n, c)]
        filters = [self.filters(*size) for size in sizes]
        return UnitParameters(norms, filters, self.normal(c))

    def basic(self):
        c, n = self.channels, self.inner
        norms = [self.norm(c, self.slope), self.norm(n, self.slope**2)]
        filters = [self.filters(3, 3, c, n), self.filters(3, 3, n, c)]
        return UnitParameters(norms, filters, self.normal(c))

    def head(self):
        c = self.channels
        return HeadParameters(
            *(self.norm(c, self.slope, 1e-5), self.filters(3, 3, c, 1)),
            *(0.1 * self.normal(1) - 1, self.norm(c, 1.0, 2e-5)),
            0.05 * self.filters(1, 1, c, 1),
        )

    def run(self, x, **options):
        sums = tf.reduce_sum(x, [1, 2])
        return custom_ops.perforated_block(
            x, sums, self.units, self.heads, 0.01, **options
        )


def check(got, expected, atol=1e-9):
    for name, a, b in zip(got._fields, got, expected):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        tolerance = 1e-6 if a.dtype == tf.float32 else atol  # halting is float32
        if name == "output":
            tolerance = 1e-5 * np.abs(b).max(initial=1.0)
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=0, err_msg=name)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    *(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20)),
    *(st.integers(1, 6), st.integers(2, 5), st.sampled_from([2, 3])),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_is_the_twin(
    seed, batch, height, width, channels, inner, num_units, convolutions, slope
):
    made = Made(seed, channels, inner, num_units, convolutions, slope)
    x = made.normal(batch, height, width, channels)
    got = made.run(x, implementation="native")
    check(got, made.run(x, implementation="tensorflow"))
    units = got.num_units.numpy()
    if units.size:
        assert units.min() >= 1 and units.max() <= num_units
    np.testing.assert_allclose(tf.reduce_sum(got.weights, -1), 1.0, atol=1e-5)


@pytest.mark.parametrize("convolutions", [2, 3])
def test_in_single_precision_and_graphs(convolutions):
    made = Made(1, 20, 6, 4, convolutions, 0.1)
    x = made.normal(2, 9, 7, 20)
    expected = made.run(x, implementation="native")
    assert len(np.unique(expected.num_units)) > 2
    single = tf.nest.map_structure(
        lambda v: tf.cast(v, tf.float32) if tf.is_tensor(v) else v,
        (made.units, made.heads),
    )
    made.units, made.heads = single
    run = tf.function(lambda x: made.run(x, implementation="native"))
    got = run(tf.cast(x, tf.float32))
    np.testing.assert_array_equal(got.num_units, expected.num_units)
    np.testing.assert_array_equal(got.counts, expected.counts)
    np.testing.assert_allclose(got.output, expected.output, atol=2e-3)


def test_imposed_units():
    made = Made(2, 8, 4, 4, 3)
    x = made.normal(2, 5, 6, 8)
    units = tf.constant(np.random.default_rng(0).integers(1, 5, [5, 6]), tf.int32)
    each = tf.stack([units, units[::-1]])
    for imposed in (units, each):
        got = made.run(x, imposed=imposed, implementation="native")
        expected = tf.broadcast_to(imposed, [2, 5, 6])
        np.testing.assert_array_equal(got.num_units, expected)
        check(got, made.run(x, imposed=imposed, implementation="tensorflow"))
        for k in range(3):
            runs = tf.reduce_sum(tf.cast(expected > k + 1, tf.int64), [1, 2])
            np.testing.assert_array_equal(got.counts[:, k, 0], runs)


@pytest.mark.parametrize("is_last", [True, False])
def test_everything_halts_or_nothing_does(is_last):
    made = Made(3, 8, 4, 3, 2)
    bias = tf.constant([-40.0 if is_last else 40.0], tf.float64)
    made.heads = [head._replace(bias=bias) for head in made.heads]
    x = made.normal(2, 5, 6, 8)
    got = made.run(x, implementation="native")
    np.testing.assert_array_equal(got.num_units, np.full([2, 5, 6], 3 * is_last or 1))
    if not is_last:
        np.testing.assert_allclose(got.output, x, atol=1e-6)
        np.testing.assert_array_equal(got.counts, np.zeros([2, 2, 2]))


def test_its_input_stays_as_it_was():
    made = Made(4, 8, 4, 3, 3)
    x = made.normal(1, 5, 6, 8)

    @tf.function
    def run(x):
        x = x + 0.0  # which could be written to
        first = made.run(x, implementation="native").output
        return first, made.run(x, implementation="native").output, x

    first, second, same = run(x)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(same, x)


def test_bfloat16_factors():
    made = Made(5, 32, 16, 4, 3)
    x = tf.cast(made.normal(1, 8, 8, 32), tf.float32)
    made.units, made.heads = tf.nest.map_structure(
        lambda v: tf.cast(v, tf.float32) if tf.is_tensor(v) else v,
        (made.units, made.heads),
    )
    imposed = tf.constant(np.random.default_rng(1).integers(1, 5, [8, 8]), tf.int32)
    options = dict(imposed=imposed, precision="bfloat16")
    got = made.run(x, implementation="native", **options)
    twin = made.run(x, implementation="tensorflow", **options)
    exact = made.run(x, imposed=imposed, implementation="native")
    scale = float(tf.reduce_max(tf.abs(exact.output)))
    np.testing.assert_allclose(got.output, twin.output, atol=0.02 * scale)
    difference = float(tf.reduce_max(tf.abs(got.output - exact.output)))
    assert 1e-5 * scale < difference < 0.03 * scale


@pytest.mark.parametrize("convolutions", [2, 3])
def test_gradients(convolutions):
    made = Made(6, 5, 4, 3, convolutions, 0.1)
    x = made.normal(2, 4, 5, 5)
    imposed = tf.constant(np.random.default_rng(2).integers(1, 4, [4, 5]), tf.int32)
    inputs = [x, *(made.units[0].filters), made.heads[0].filters, made.units[1].bias]

    def loss(implementation, imposed):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            got = made.run(x, imposed=imposed, implementation=implementation)
            value = tf.reduce_sum(tf.sin(got.output))
            cost = tf.cast(got.remainder, tf.float64) + tf.cast(
                got.weights[..., 0], tf.float64
            )
            value += tf.reduce_sum(cost)
        return tape.gradient(value, inputs)

    for units in (None, imposed):
        for got, expected in zip(loss("native", units), loss("tensorflow", units)):
            largest = float(tf.reduce_max(tf.abs(expected)))
            assert largest > 0 or units is None
            np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, largest))


def as_variables(made):
    made.units, made.heads = tf.nest.map_structure(
        lambda v: tf.Variable(v) if tf.is_tensor(v) else v, (made.units, made.heads)
    )


def test_variables_are_read_when_it_runs():
    made = Made(9, 8, 4, 3, 3)
    x = made.normal(1, 5, 6, 8)
    expected = made.run(x, implementation="native")
    as_variables(made)
    filters = made.units[0].filters[0]
    old = tf.identity(filters)

    @tf.function
    def run(x):
        first = made.run(x, implementation="native").output
        filters.assign(2.0 * filters)
        second = made.run(x, implementation="native").output
        filters.assign(old)
        return first, second, made.run(x, implementation="native").output

    first, second, third = run(x)
    np.testing.assert_array_equal(first, expected.output)
    np.testing.assert_array_equal(third, expected.output)
    filters.assign(2.0 * old)
    np.testing.assert_array_equal(second, made.run(x, implementation="native").output)
    assert not np.array_equal(first, second)


def test_does_not_run_where_nobody_wants_it():
    made = Made(9, 8, 4, 3, 3)
    as_variables(made)

    @tf.function
    def run(x):
        y = made.run(x[..., :7], implementation="native").output  # would fail
        tf.reduce_sum(y)
        return x

    run(made.normal(1, 5, 6, 8))


def test_gradients_of_variables():
    made = Made(6, 5, 4, 3, 2, 0.1)
    as_variables(made)
    x = made.normal(2, 4, 5, 5)
    watched = [*made.units[0].filters, made.heads[0].filters]

    @tf.function
    def gradients(implementation):
        with tf.GradientTape() as tape:
            got = made.run(x, implementation=implementation)
            loss = tf.reduce_sum(tf.sin(got.output))
        return tape.gradient(loss, watched)

    for got, expected in zip(gradients("native"), gradients("tensorflow")):
        largest = float(tf.reduce_max(tf.abs(expected)))
        assert largest > 0
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, largest))


def test_variables_of_another_type():
    made = Made(9, 8, 4, 3, 3)
    x = made.normal(1, 5, 6, 8)
    bias = made.units[0].bias
    made.units[0] = made.units[0]._replace(bias=tf.Variable(tf.cast(bias, tf.float32)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be double"):
        made.run(x, implementation="native")


def changed(**options):
    return dict(x=[2, 5, 6, 8], sums=[2, 8], imposed=None, index=None, shape=None) | (
        options
    )


@pytest.mark.parametrize(
    "case, message",
    [
        (changed(x=[5, 6, 8]), "x must be"),
        (changed(sums=[2, 7]), "sums must be"),
        (changed(sums=[16]), "sums must be"),
        (changed(imposed=[6, 5]), "imposed must be"),
        (changed(imposed=[3, 5, 6]), "imposed must be"),
        (changed(index=0, shape=[7]), "parameter 0 must be"),
        (changed(index=4, shape=[1, 1, 7, 4]), "parameter 4 must be filters"),
        (changed(index=9, shape=[3, 4, 4, 4]), "odd side"),
        (changed(index=14, shape=[1, 1, 4, 9]), "parameter 14 must be filters"),
        (changed(index=15, shape=[1, 8]), "parameter 15 must be"),
        (changed(index=36, shape=[3, 3, 8, 2]), "parameter 36 must be filters"),
        (changed(index=37, shape=[]), "parameter 37 must be"),
        (changed(index=42, shape=[8, 1]), "parameter 42 must be"),
    ],
)
def test_sizes_that_do_not_fit(case, message):
    made = Made(7, 8, 4, 3, 3)
    flat = custom_ops.blocks._flat(made.units, made.heads)
    if case["index"] is not None:
        flat[case["index"]] = made.normal(*case["shape"])
    made.units, made.heads = custom_ops.blocks._like(flat, made.units, made.heads)
    imposed = case["imposed"] and tf.ones(case["imposed"], tf.int32)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=message):
        custom_ops.perforated_block(
            *(made.normal(*case["x"]), made.normal(*case["sums"])),
            *(made.units, made.heads, 0.01),
            imposed=imposed,
            implementation="native",
        )


def test_units_that_differ_in_kind():
    made, other = Made(8, 8, 4, 3, 3), Made(8, 8, 4, 3, 2)
    x = made.normal(1, 4, 4, 8)
    made.units[1] = other.units[1]
    with pytest.raises(ValueError, match="same number of convolutions"):
        made.run(x)
    made.units = made.units[:1]
    with pytest.raises(ValueError, match="units and heads must be as many"):
        made.run(x)
