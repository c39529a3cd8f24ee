"""What the CUDA kernels compute, emulated, against TensorFlow in float64."""

import ctypes
import shutil

import numpy as np
import pytest
import tensorflow as tf

import custom_ops
from custom_ops import emulation

# In the order of `Type` in gpu.h: how factors come, and the mean error of a result
# relative to its mean magnitude.
TYPES = {
    "float32": (np.float32, 1e-6),
    "tf32": (np.float32, 1e-3),
    "float16": (np.float16, 1e-3),
    "bfloat16": (tf.bfloat16.as_numpy_dtype, 8e-3),
}


class Geometry(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in "batch height width channels kernel_height kernel_width "
            "out_height out_width filters stride_y stride_x dilation_y dilation_x "
            "pad_top pad_left".split()
        ),
        ("shared_mask", ctypes.c_bool),
    ]


class Indexed(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in "batch rows_in channels rows_out taps filters".split()
        ),
        ("table", ctypes.c_void_p),
    ]


class Transform(ctypes.Structure):
    _fields_ = [
        ("scale", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("slope", ctypes.c_float),
    ]


class Stage(ctypes.Structure):
    _fields_ = [("filters", ctypes.c_void_p), ("after", Transform)]


class Kernels:
    """The emulated kernels of one compute capability and type."""

    def __init__(self, architecture, kind):
        self.library = ctypes.CDLL(str(emulation.libraries()[architecture]))
        self.kind = list(TYPES).index(kind)
        self.dtype, self.bound = TYPES[kind]
        self.random = np.random.default_rng(0)

    def normal(self, *shape):
        return self.random.normal(size=shape).astype(np.float32).astype(self.dtype)

    def run(self, name, shape, *arguments):
        """Calls emulated_NAME; returns what it writes into an array of this shape."""
        output = np.full(shape, np.nan, self.dtype)
        run = getattr(self.library, f"emulated_{name}")
        run.restype = ctypes.c_char_p
        error = run(self.kind, *map(pass_on, arguments), pass_on(output))
        assert error is None, error
        return output

    def compare(self, results, expected):
        for got, value in zip(results, expected, strict=True):
            value = np.asarray(value)
            assert got.shape == value.shape
            error = np.abs(got.astype(np.float64) - value).mean()
            assert error <= self.bound * max(np.abs(value).mean(), 1e-6)


def pass_on(argument):
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    return ctypes.c_int64(argument) if isinstance(argument, int) else argument


def transform(scale=None, shift=None, slope=1.0):
    address = [None if v is None else v.ctypes.data for v in (scale, shift)]
    return Transform(*address, slope)


def wide(*arrays):
    return [tf.constant(a.astype(np.float64)) for a in arrays]


def gradients(run, tensors, output_gradient):
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        y = run(*tensors)
    found = tape.gradient(y, tensors, output_gradient)
    return [y, *map(tf.convert_to_tensor, found)]


@pytest.fixture(
    params=[(a, kind) for a in emulation.ARCHITECTURES for kind in TYPES],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def kernels(request):
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler")
    return Kernels(*request.param)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_emulated_convolution_equals_tensorflow(kernels, share):
    """Forward and both gradients; odd sizes, a stride, padding of one side only."""
    x, filters = kernels.normal(2, 7, 9, 11), kernels.normal(3, 2, 11, 70)
    scale, bias = kernels.normal(11), kernels.normal(70)
    g = Geometry(2, 7, 9, 11, 3, 2, 4, 9, 70, 2, 1, 1, 1, 1, 0, False)
    mask = kernels.random.random((2, 4, 9)) < share
    dy = kernels.normal(2, 4, 9, 70)

    def dense(x, filters):
        y = tf.nn.conv2d(x, filters, (2, 1), [[0, 0], [1, 1], [0, 1], [0, 0]])
        return tf.where(mask[..., None], y, 0.0)

    x64, f64, scale64, bias64, dy64 = wide(x, filters, scale, bias, dy)
    before = tf.nn.relu(x64 * scale64)  # rounded as what the product multiplies
    before = tf.constant(before.numpy().astype(kernels.dtype).astype(np.float64))
    y = tf.where(mask[..., None], dense(before, f64) + bias64, 0.0)
    _, *expected = gradients(dense, [x64, f64], dy64)
    got = [
        kernels.run(
            "convolution", y.shape, g, x, filters, mask,
            transform(scale, slope=0.0), transform(shift=bias),
        ),
        kernels.run("input_gradient", x.shape, g, dy, filters, mask),
        kernels.run("filter_gradient", filters.shape, g, x, dy, mask),
    ]  # fmt: skip
    kernels.compare(got, [y, *expected])
    np.testing.assert_array_equal(got[0][~mask], 0)


def test_emulated_bottleneck_equals_tensorflow(kernels):
    x, mask = kernels.normal(2, 6, 5, 24), kernels.random.random((2, 6, 5)) < 0.5
    filters = [
        kernels.normal(*shape) / np.sqrt(np.prod(shape[:3])).astype(kernels.dtype)
        for shape in ((1, 1, 24, 9), (3, 3, 9, 16), (1, 1, 16, 24))
    ]
    affine = [[kernels.normal(n), kernels.normal(n)] for n in (24, 9, 16)]
    bias, sums = kernels.normal(24), kernels.normal(2, 24)
    stages = (Stage * 3)(
        *(
            Stage(f.ctypes.data, t)
            for f, t in zip(
                filters,
                [transform(*affine[1], 0.0), transform(*affine[2], 0.0)]
                + [transform(shift=bias)],
            )
        )
    )
    middle = Geometry(2, 6, 5, 9, 3, 3, 6, 5, 16, 1, 1, 1, 1, 1, 1, False)
    y = np.full_like(x, np.nan)
    new_sums = kernels.run(
        "bottleneck", sums.shape, middle, 24, x, transform(*affine[0], 0.0),
        ctypes.byref(stages), mask, y, sums,
    )  # fmt: skip
    expected = custom_ops.perforated_bottleneck(
        *wide(x), mask, wide(*affine[0]), wide(*filters),
        [wide(*affine[1]), wide(*affine[2])], *wide(bias, sums),
        implementation="tensorflow",
    )  # fmt: skip
    kernels.bound *= 4  # Three roundings in a row, and a sum of many.
    kernels.compare([y, new_sums], expected)
    np.testing.assert_array_equal(y[~mask], x[~mask])


def table(kernels, rows, *shape):
    return kernels.random.integers(-1, rows, shape).astype(np.int32)


def test_emulated_indexed_convolution_equals_tensorflow(kernels):
    rows, filters = kernels.normal(2, 41, 16), kernels.normal(3, 3, 16, 70)
    bias, scale = kernels.normal(70), kernels.normal(70)
    dy, taps = kernels.normal(2, 67, 70), table(kernels, 41, 67, 9)
    after = transform(scale, bias, 0.0)
    g = Indexed(2, 41, 16, 67, 9, 70, taps.ctypes.data)
    got = [
        kernels.run("indexed_convolution", dy.shape, g, rows, filters, after),
        kernels.run("indexed_input_gradient", rows.shape, g, dy, filters),
        kernels.run("indexed_filter_gradient", filters.shape, g, rows, dy),
    ]
    rows, filters, bias, scale, dy = wide(rows, filters, bias, scale, dy)

    def run(rows, filters, **options):
        return custom_ops.indexed_conv2d(
            rows, filters, taps, implementation="tensorflow", **options
        )

    _, *expected = gradients(run, [rows, filters], dy)
    y = run(rows, filters, bias=bias, scale=scale, slope=0.0)
    kernels.compare(got, [y, *expected])


def test_emulated_pooling_and_interpolation_equal_tensorflow(kernels):
    rows = np.round(kernels.normal(2, 41, 5) * 2).astype(kernels.dtype)  # often equal
    taps, index = table(kernels, 41, 67, 4), table(kernels, 41, 6, 7) % 41
    index = index.astype(np.int32)
    dy, dimage = kernels.normal(2, 67, 5), kernels.normal(2, 6, 7, 5)
    g = Indexed(2, 41, 5, 67, 4, 0, taps.ctypes.data)
    single = Indexed(2, 41, 5, 42, 1, 0, index.ctypes.data)
    got = [
        kernels.run("pool", dy.shape, g, True, rows),
        kernels.run("max_pool_gradient", rows.shape, g, rows, dy),
        kernels.run("pool", dy.shape, g, False, rows),
        kernels.run("pool", dimage.shape, single, False, rows),
        kernels.run("add_to_rows", rows.shape, single, dimage),
    ]
    rows, dy, dimage = wide(rows, dy, dimage)
    expected = [
        *gradients(
            lambda rows: custom_ops.indexed_pool(rows, taps, "max", "tensorflow"),
            [rows],
            dy,
        ),
        custom_ops.indexed_pool(rows, taps, "average", "tensorflow"),
        *gradients(
            lambda rows: custom_ops.nearest_interpolate(rows, index, "tensorflow"),
            [rows],
            dimage,
        ),
    ]
    kernels.compare(got, expected)
