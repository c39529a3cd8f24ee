"""Interpolation, convolution and pooling of compact rows; both implementations."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import custom_ops

IMPLEMENTATIONS = ("native", "tensorflow")
KINDS = ("max", "average")


def is_missing(implementation):
    return implementation == "native" and not custom_ops.has_kernel(
        "IndexedConv2D", "CPU", tf.float32
    )


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    if is_missing(request.param):
        pytest.skip("the native kernels can not be compiled here")
    return request.param


def normal(*shape, seed=0, dtype=np.float64):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def integers(low, high, *shape, seed=1):
    values = np.random.default_rng(seed).integers(low, high, shape)
    return tf.constant(values, tf.int32)


def composed(index, kernel, strides, pad):
    """The table of a window that slides over an image of which rows are kept.

    Args:
        index: Int [height, width], the row of each position.
        kernel: Height and width.
        strides: The same.
        pad: Positions around the image, top, bottom, left, right.

    Returns:
        Int32 [out height * out width, taps], and the output's sides.
    """
    padded = np.pad(index, [pad[:2], pad[2:]], constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel)
    windows = windows[:: strides[0], :: strides[1]]
    return windows.reshape(-1, kernel[0] * kernel[1]).astype(np.int32), windows.shape[
        :2
    ]


@st.composite
def cases(draw):
    side = st.integers(1, 8)
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pad = draw(st.tuples(*[st.integers(0, 2)] * 4))
    sides = draw(st.tuples(side, side))
    sides = [
        max(s, k - p) for s, k, p in zip(sides, kernel, (sum(pad[:2]), sum(pad[2:])))
    ]
    kept = draw(st.integers(1, sides[0] * sides[1]))
    seed = draw(st.integers(0, 2**31))
    return dict(
        index=np.random.default_rng(seed).integers(0, kept, sides, np.int32),
        kept=kept,
        kernel=kernel,
        strides=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        pad=pad,
        batch=draw(st.integers(0, 3)),
        channels=draw(st.integers(1, 40)),
        filters=draw(st.integers(1, 40)),
        has_scale=draw(st.booleans()),
        slope=draw(st.sampled_from([1.0, 0.0, 0.1])),
    )


def check_implicit_equals_explicit(case):
    """Through a composed table, and by interpolation and TensorFlow's dense op."""
    rows = normal(case["batch"], case["kept"], case["channels"], dtype=np.float32)
    filters = normal(
        *case["kernel"], case["channels"], case["filters"], seed=1, dtype=np.float32
    )
    bias = normal(case["filters"], seed=2, dtype=np.float32)
    scale = normal(case["filters"], seed=3, dtype=np.float32)
    after = dict(scale=scale if case["has_scale"] else None, slope=case["slope"])
    taps, sides = composed(*(case[k] for k in ("index", "kernel", "strides", "pad")))
    pad = [[0, 0], list(case["pad"][:2]), list(case["pad"][2:]), [0, 0]]
    images = tf.gather(rows, case["index"], axis=1)
    shape = [case["batch"], *sides, -1]

    def windows(value):
        patches = tf.pad(images, pad, constant_values=value)
        patches = np.lib.stride_tricks.sliding_window_view(
            patches, case["kernel"], (1, 2)
        )[:, :: case["strides"][0], :: case["strides"][1]]
        return patches  # [batch, height, width, channels, kernel height and width]

    expected = tf.einsum("bpqcyx,yxcf->bpqf", windows(0.0), filters)
    expected = expected * (scale if case["has_scale"] else 1.0) + bias
    expected = tf.nn.leaky_relu(expected, case["slope"])
    counts = np.sum(taps >= 0, 1).reshape([1, *sides, 1])
    pooled = {
        "max": np.where(counts, windows(-np.inf).max((-2, -1)), 0.0),
        "average": windows(0.0).sum((-2, -1)) / np.maximum(counts, 1),
    }
    for implementation in IMPLEMENTATIONS:
        if is_missing(implementation):
            continue
        got = custom_ops.nearest_interpolate(rows, case["index"], implementation)
        np.testing.assert_array_equal(got, images)
        got = custom_ops.indexed_conv2d(
            rows, filters, taps, bias, implementation, **after
        )
        size = 1 + np.abs(expected).max(initial=0)
        np.testing.assert_allclose(
            got, tf.reshape(expected, got.shape), rtol=0, atol=1e-5 * size
        )
        for kind, value in pooled.items():
            got = custom_ops.indexed_pool(rows, taps, kind, implementation)
            np.testing.assert_allclose(
                got, value.reshape(got.shape), rtol=1e-6, atol=1e-6
            )
    assert expected.shape == [*shape[:3], case["filters"]]


@settings(max_examples=40, deadline=None)
@given(cases())
def test_implicit_equals_explicit(case):
    check_implicit_equals_explicit(case)


@pytest.mark.long
@settings(max_examples=5_000, deadline=None)
@given(cases())
def test_implicit_equals_explicit_in_five_thousand_cases(case):
    check_implicit_equals_explicit(case)


@pytest.mark.parametrize("pad", [(1, 1, 1, 1), (0, 1, 0, 1)])
def test_equals_tensorflows_dense_operations(implementation, pad):
    index = np.arange(56).reshape(7, 8)
    x, filters = normal(2, 7, 8, 5), normal(3, 3, 5, 33, seed=1)
    rows = tf.reshape(x, [2, 56, 5])
    taps, sides = composed(index, (3, 3), (2, 2), pad)
    around = [[0, 0], list(pad[:2]), list(pad[2:]), [0, 0]]
    expected = tf.nn.conv2d(x, filters, 2, around)
    got = custom_ops.indexed_conv2d(rows, filters, taps, implementation=implementation)
    np.testing.assert_allclose(tf.reshape(got, [2, *sides, 33]), expected, atol=1e-10)
    for kind, pooling in (("max", "MAX"), ("average", "AVG")):
        taps, sides = composed(index, (2, 2), (2, 2), (0, 1, 0, 0))
        expected = tf.nn.pool(x, (2, 2), pooling, (2, 2), "SAME")
        got = custom_ops.indexed_pool(rows, taps, kind, implementation)
        np.testing.assert_allclose(tf.reshape(got, [2, *sides, 5]), expected)


def gradients(run, tensors):
    """First and second derivatives."""
    with tf.GradientTape() as outer:
        outer.watch(tensors)
        with tf.GradientTape() as inner:
            inner.watch(tensors)
            value = tf.reduce_sum(tf.sin(run(*tensors)))
        first = inner.gradient(value, tensors)
        total = tf.add_n([tf.reduce_sum(tf.square(g)) for g in first])
    second = outer.gradient(total, tensors)
    return [tf.convert_to_tensor(g) for g in [*first, *second]]


OPS = {
    "interpolate": lambda rows, implementation: custom_ops.nearest_interpolate(
        rows, integers(0, 6, 4, 5), implementation
    ),
    **{
        kind: lambda rows, implementation, kind=kind: custom_ops.indexed_pool(
            rows, integers(-1, 6, 7, 4), kind, implementation
        )
        for kind in KINDS
    },
}


def convolve(rows, filters, bias, scale=None, implementation="auto", slope=1.0):
    taps = integers(-1, 6, 7, 6)
    return custom_ops.indexed_conv2d(
        rows, filters, taps, bias, implementation, scale=scale, slope=slope
    )


@pytest.mark.parametrize("op", OPS)
def test_numerical_gradients(implementation, op):
    run = tf.function(lambda rows: OPS[op](rows, implementation))
    theory, numbers = tf.test.compute_gradient(run, [normal(2, 6, 3)], delta=1e-6)
    np.testing.assert_allclose(theory[0], numbers[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("slope", [None, 1.0, 0.1])
def test_numerical_gradients_of_the_convolution(implementation, slope):
    options = {"implementation": implementation, "slope": slope or 0.0}
    run = tf.function(lambda *tensors: convolve(*tensors, **options))
    tensors = [normal(2, 6, 3), normal(2, 3, 3, 4, seed=1), normal(4)]
    if slope is not None:
        tensors.append(normal(4, seed=2))  # the scale
    theory, numbers = tf.test.compute_gradient(run, tensors, delta=1e-6)
    for a, b in zip(theory, numbers):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


def test_derivatives_of_both_implementations_agree():
    if is_missing("native"):
        pytest.skip("the native kernels can not be compiled here")
    shapes = [(2, 6, 40), (2, 3, 40, 37), (37,), (37,)]
    tensors = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    for run, inputs in (
        (convolve, tensors[:3]),
        (functools.partial(convolve, slope=0.1), tensors),
        *((op, tensors[:1]) for op in OPS.values()),
    ):
        native, plain = (
            gradients(functools.partial(run, implementation=i), inputs)
            for i in IMPLEMENTATIONS
        )
        for a, b in zip(native, plain):
            np.testing.assert_allclose(a, b, atol=1e-8, rtol=1e-8)


def test_gradient_of_a_maximum_goes_to_the_first(implementation):
    rows = tf.constant([[[1.0], [3.0], [3.0], [2.0]]])
    taps = [[0, 2, 1], [3, 3, 0], [-1, 1, 2], [-1, -1, -1]]
    with tf.GradientTape() as tape:
        tape.watch(rows)
        y = custom_ops.indexed_pool(rows, taps, "max", implementation)
        loss = tf.reduce_sum(y * tf.constant([[[1.0], [10.0], [100.0], [1000.0]]]))
    np.testing.assert_array_equal(y[0, :, 0], [3, 2, 3, 0])
    gradient = tf.convert_to_tensor(tape.gradient(loss, rows))
    np.testing.assert_array_equal(gradient[0, :, 0], [0, 100, 1, 10])


def test_a_maximum_is_nan_where_its_window_holds_one(implementation):
    rows = tf.constant([[[1.0] * 40, [np.nan] * 40, [3.0] * 40, [-np.inf] * 40]])
    taps = [[0, 1, 2], [2, 0, 1], [0, 2, -1], [3, 3, -1]]
    y = custom_ops.indexed_pool(rows, taps, "max", implementation)
    for column in (0, 39):
        np.testing.assert_array_equal(y[0, :, column], [np.nan, np.nan, 3, -np.inf])


def run_all(rows, implementation, taps=((0, -1), (-1, -1), (1, 2))):
    """Every op once, of 3 channels; anything may be unknown but the ranks."""
    taps = tf.constant(taps, tf.int32)
    filters = normal(1, 2, 3, 4, seed=3, dtype=np.float32)
    return [
        custom_ops.nearest_interpolate(rows, [[0, 2, 1], [0, 0, 1]], implementation),
        custom_ops.indexed_conv2d(rows, filters, taps, normal(4, dtype=np.float32),
                                  implementation),
        *(custom_ops.indexed_pool(rows, taps, kind, implementation) for kind in KINDS),
    ]  # fmt: skip


def test_rows_of_few_channels_that_lie_one_after_the_other(implementation):
    """Those of an image, which are copied together; windows of any length of them."""
    for channels in (1, 2, 3, 5, 15, 16):
        rows = normal(2, 40, channels, seed=channels)
        starts, length = np.array([0, 3, 17, 33]), np.arange(7)
        taps = np.where(
            length < [[7], [4], [0], [7]], starts[:, np.newaxis] + length, 5
        )
        taps[1, 2] = -1
        filters = normal(1, 7, channels, 4, seed=1)
        got = custom_ops.indexed_conv2d(
            rows, filters, taps.astype(np.int32), implementation=implementation
        )
        patches = tf.gather(rows, np.maximum(taps, 0), axis=1)
        patches *= (taps >= 0)[..., np.newaxis]
        expected = tf.einsum("brtc,tcf->brf", patches, filters[0])
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_ops_saved_before_there_was_a_scale():
    """Their nodes have four inputs, and neither N nor slope."""
    if is_missing("native"):
        pytest.skip("the native kernels can not be compiled here")
    rows, filters = ROWS + 1, FILTERS + 1
    graph = tf.Graph()
    with graph.as_default():
        custom_ops.load().indexed_conv2d(rows, filters, TAPS, np.zeros([0], "f"), [])
    definition = graph.as_graph_def()
    node = next(n for n in definition.node if n.op == "IndexedConv2D")
    for name in ("N", "slope"):
        del node.attr[name]
    assert len(node.input) == 4
    run = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(
            definition, return_elements=[f"{node.name}:0"]
        ),
        [],
    )
    np.testing.assert_array_equal(run()[0], np.full([2, 6, 4], 10))


@pytest.mark.parametrize("spec", [[None, 3, 3], [None, None, None], [2, None, 3]])
def test_unknown_sizes_in_a_graph(implementation, spec):
    run = tf.function(
        lambda rows: run_all(rows, implementation),
        input_signature=[tf.TensorSpec(spec)],
        autograph=False,
    )
    for y in run.get_concrete_function().outputs:
        assert y.shape.as_list()[0] == spec[0] and None not in y.shape.as_list()[1:-1]
    for batch in (2,) if spec[0] else (0, 1, 5):
        rows = normal(batch, 3, 3, dtype=np.float32)
        for got, expected in zip(run(rows), run_all(rows, "tensorflow")):
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_survives_export(implementation, tmp_path):
    module = tf.Module()
    module.table = tf.Variable([[0, -1], [2, 1]], trainable=False)
    module.run = tf.function(
        lambda rows: (
            run_all(rows, implementation)
            + [custom_ops.indexed_pool(rows, module.table, "max", implementation)]
        ),
        input_signature=[tf.TensorSpec([None, 3, 3])],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path))
    rows = normal(2, 3, 3, dtype=np.float32)
    loaded = tf.saved_model.load(str(tmp_path))
    for got, expected in zip(loaded.run(rows), module.run(rows)):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("batch, kept, out", [(0, 3, 2), (2, 0, 3), (2, 3, 0)])
def test_nothing_to_compute(implementation, batch, kept, out):
    """No images, no rows (every tap reads padding), no outputs."""
    rows = normal(batch, kept, 3)
    filters, bias = normal(2, 2, 3, 4, seed=1), normal(4, seed=2)
    taps = tf.fill([out, 4], -1)
    with tf.GradientTape() as tape:
        tape.watch([rows, filters, bias])
        y = custom_ops.indexed_conv2d(rows, filters, taps, bias, implementation)
        pooled = [
            custom_ops.indexed_pool(rows, taps, kind, implementation) for kind in KINDS
        ]
        index = tf.zeros([0, 5], tf.int32)
        image = custom_ops.nearest_interpolate(rows, index, implementation)
        total = tf.add_n([tf.reduce_sum(t) for t in [y, image, *pooled]])
    assert image.shape == [batch, 0, 5, 3]
    np.testing.assert_allclose(y, tf.broadcast_to(bias, [batch, out, 4]))
    for p in pooled:
        np.testing.assert_array_equal(p, np.zeros([batch, out, 3]))
    found = tape.gradient(total, [rows, filters, bias])
    for got, expected in zip(found, (0.0, 0.0, batch * out)):
        np.testing.assert_array_equal(got, np.full(got.shape, expected))


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision_in_plain_operations(dtype):
    rows = tf.cast(integers(-4, 5, 2, 3, 3), dtype)
    taps = [[0, 1], [-1, 2]]
    filters = tf.cast(integers(-2, 3, 1, 2, 3, 4), dtype)
    y = custom_ops.indexed_conv2d(rows, filters, taps, implementation="tensorflow")
    wide = custom_ops.indexed_conv2d(
        tf.cast(rows, tf.float32), tf.cast(filters, tf.float32), taps
    )
    np.testing.assert_array_equal(tf.cast(y, tf.float32), wide)


ROWS = np.zeros([2, 3, 5], np.float32)
FILTERS = np.zeros([1, 2, 5, 4], np.float32)
TAPS = np.zeros([6, 2], np.int32)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(rows=ROWS[0]), "rows must be .batch, rows, channels.; got shape"),
        (dict(rows=ROWS.astype(np.int32)), "rows must be one of.*int32"),
        (dict(rows=None), "rows must be a tensor; got NoneType"),
        (dict(filters=FILTERS[0]), "filters must be .height"),
        (dict(filters=FILTERS[:, :, :4]), "filters must have 5"),
        (dict(filters=tf.constant(FILTERS, tf.float64)), "filters must be float32"),
        (dict(taps=TAPS[0]), "taps must be .rows_out"),
        (dict(taps=np.zeros([6, 2], np.float32)), "taps must be int32; got float32"),
        (dict(taps=tf.zeros([6, 2], tf.int64)), "taps must be int32; got int64"),
        (dict(taps=np.full([6, 2], 2**40)), "taps must be int32; got int64"),
        (dict(taps=np.zeros([6, 3], np.int32)), "taps must have 2 .*; got .*6, 3"),
        (dict(bias=np.zeros([3], np.float32)), "bias must have 4"),
        (dict(bias=np.zeros([1, 4], np.float32)), "bias must be .channels"),
        (dict(scale=np.zeros([3], np.float32)), "scale must have 4"),
        (dict(slope=1.5), r"slope must lie in \[0, 1\]; got 1.5"),
        (dict(slope="relu"), r"slope must lie in \[0, 1\]; got relu"),
        (dict(implementation="fast"), "implementation must be one of.*'fast'"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    good = dict(rows=ROWS, filters=FILTERS, taps=TAPS)
    with pytest.raises(ValueError, match=message):
        custom_ops.indexed_conv2d(**{**good, **arguments})


def test_errors_of_the_others():
    with pytest.raises(ValueError, match="kind must be one of max, average; got 'sum'"):
        custom_ops.indexed_pool(ROWS, TAPS, "sum")
    with pytest.raises(ValueError, match="taps must be .rows_out, taps"):
        custom_ops.indexed_pool(ROWS, TAPS[0])
    with pytest.raises(ValueError, match="index must be .height, width"):
        custom_ops.nearest_interpolate(ROWS, TAPS[0])
    with pytest.raises(ValueError, match="index must be int32"):
        custom_ops.nearest_interpolate(ROWS, TAPS.astype(np.float32))
    for run in (custom_ops.nearest_interpolate, custom_ops.indexed_pool):
        with pytest.raises(ValueError, match="implementation must be one of"):
            run(ROWS, TAPS, implementation="fast")


@pytest.mark.parametrize("value, low", [(3, 0), (-1, 0), (3, -1), (-2, -1)])
@pytest.mark.parametrize("is_late", [False, True])
def test_indices_out_of_range(implementation, value, low, is_late):
    name = "taps" if low else "index"
    runs = [
        lambda rows, table: custom_ops.indexed_conv2d(
            rows, FILTERS, table, implementation=implementation
        ),
        *(
            lambda rows, table, kind=kind: custom_ops.indexed_pool(
                rows, table, kind, implementation
            )
            for kind in KINDS
        ),
    ]
    if not low:
        runs = [
            lambda rows, table: custom_ops.nearest_interpolate(
                rows, table, implementation
            )
        ]
    for run in runs:
        if is_late:
            signature = [tf.TensorSpec([None] * 3), tf.TensorSpec([None] * 2, tf.int32)]
            run = tf.function(run, input_signature=signature, autograph=False)
        run(ROWS, TAPS)
        message = rf"{name} must lie in \[{low}, .*3.*{value}"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            run(ROWS, np.array([[0, 0], [value, 1], [2, 0]], np.int32))


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(filters=FILTERS[:, :, :4]), "filters must"),
        (dict(taps=np.zeros([6, 3], np.int32)), "taps must have"),
        (dict(bias=np.zeros([1], np.float32)), "bias must"),
        (dict(bias=np.zeros([5], np.float32)), "bias must"),
        (dict(scale=np.zeros([5], np.float32)), "scale must"),
    ],
)
def test_sizes_that_do_not_fit_at_run_time(implementation, changed, message):
    good = dict(rows=ROWS, filters=FILTERS, taps=TAPS)
    good["bias"] = good["scale"] = np.zeros([4], np.float32)
    spec = {
        name: tf.TensorSpec([None] * value.ndim, value.dtype)
        for name, value in good.items()
    }

    @tf.function(input_signature=[spec], autograph=False)
    def run(tensors):
        return custom_ops.indexed_conv2d(**tensors, implementation=implementation)

    run({name: tf.constant(value) for name, value in good.items()})
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        run({name: tf.constant(v) for name, v in {**good, **changed}.items()})
