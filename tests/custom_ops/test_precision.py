"""Products of bfloat16, summed in float32: kernels against twins, and against float32.

With small whole numbers all sums are exact, so that what is rounded must agree to the
last bit, whatever the order of additions.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import custom_ops


@pytest.fixture(params=("native", "tensorflow"))
def implementation(request):
    if request.param == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    return request.param


def whole(*shape, limit=3, seed=0):
    values = np.random.default_rng(seed).integers(-limit, limit + 1, shape)
    return tf.constant(values.astype(np.float32))


def normal(*shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return tf.constant(values.astype(np.float32))


def rounded(x):
    return tf.cast(tf.cast(x, tf.bfloat16), tf.float32)


def bottleneck(make, channels, inner, outer, x_channels=None):
    x_channels = x_channels or channels
    return dict(
        preactivation=(make(x_channels, seed=1), make(x_channels, seed=2)),
        filters=[
            make(1, 1, x_channels, inner, seed=3),
            make(3, 3, inner, outer, seed=4),
            make(1, 1, outer, channels, seed=5),
        ],
        norms=[
            (make(inner, seed=6), make(inner, seed=7)),
            (make(outer, seed=8), make(outer, seed=9)),
        ],
        bias=make(channels, seed=10),
    )


def mask_of(*shape, share, seed=7):
    return tf.constant(np.random.default_rng(seed).random(shape) < share)


def whole_unit(*sizes, **options):
    def make(*shape, seed):
        return whole(*shape, limit=1, seed=seed)

    return bottleneck(make, *sizes, **options)


def both(run):
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    return run("native"), run("tensorflow")


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sizes", [(20, 6, 5), (33, 32, 40)])
def test_bottleneck_equals_twin(share, sizes):
    x, unit, mask = whole(2, 9, 7, sizes[0]), whole_unit(*sizes), None
    mask = mask_of(2, 9, 7, share=share)

    def run(implementation):
        return custom_ops.perforated_bottleneck(
            x,
            mask,
            **unit,
            sums=tf.reduce_sum(x, [1, 2]),
            implementation=implementation,
            precision="bfloat16",
        )

    (y, sums), (twin, twin_sums) = both(run)
    np.testing.assert_array_equal(y, twin)
    np.testing.assert_array_equal(sums, twin_sums)
    np.testing.assert_array_equal(sums, tf.reduce_sum(y, [1, 2]))


@pytest.mark.parametrize("stride", [1, 2])
def test_projection_equals_twin(stride):
    x, unit = whole(2, 8, 7, 7), whole_unit(20, 6, 5, x_channels=7)
    projection, bias = whole(1, 1, 7, 20, seed=11), whole(20, seed=12)

    def run(implementation):
        return custom_ops.projection_bottleneck(
            x,
            **unit,
            projection=projection,
            projection_bias=bias,
            stride=stride,
            implementation=implementation,
            precision="bfloat16",
        )

    (y, sums), (twin, twin_sums) = both(run)
    np.testing.assert_array_equal(y, twin)
    np.testing.assert_array_equal(sums, twin_sums)


@pytest.mark.parametrize("channels, inner", [(3, 2), (40, 40)])
def test_basic_unit_equals_twin(channels, inner):
    x, mask = whole(2, 6, 7, channels), mask_of(2, 6, 7, share=0.4)
    affine = [(whole(n, seed=n), whole(n, seed=n + 1)) for n in (channels, inner)]
    filters = [
        whole(3, 3, channels, inner, limit=1, seed=1),
        whole(3, 3, inner, channels, limit=1, seed=2),
    ]

    def run(implementation):
        return custom_ops.perforated_basic_unit(
            *(x, mask, affine[0], filters, affine[1], whole(channels, seed=5)),
            slopes=(0.0, 0.5),
            implementation=implementation,
            precision="bfloat16",
        )

    y, twin = both(run)
    np.testing.assert_array_equal(y, twin)


@settings(max_examples=25)
@given(st.integers(0, 2**31))
def test_random_convolutions_are_those_of_rounded_factors(seed):
    """As the float32 kernel computes of factors that are rounded already."""
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    random = np.random.default_rng(seed)
    channels, filters = random.integers(1, 70, 2)
    kernel, stride, dilation = random.choice([1, 3]), *random.integers(1, 3, 2)
    height, width = random.integers(1, 12, 2)
    x = normal(random.integers(1, 3), height, width, channels, seed=seed)
    weights = normal(kernel, kernel, channels, filters, seed=seed + 1)
    sides = (-(-height // stride), -(-width // stride))
    mask = mask_of(x.shape[0], *sides, share=random.choice([0, 0.3, 1]), seed=seed)
    window = dict(strides=int(stride), dilations=int(dilation))
    window["bias"] = normal(filters, seed=seed + 2)
    got, twin = (
        custom_ops.perforated_conv2d(
            *(x, weights, mask),
            **window,
            implementation=name,
            precision="bfloat16",
        )
        for name in ("native", "tensorflow")
    )
    expected = custom_ops.perforated_conv2d(
        rounded(x), rounded(weights), mask, **window
    )
    scale = 1e-5 * np.sqrt(channels * kernel**2)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=scale)
    np.testing.assert_allclose(twin, expected, rtol=1e-5, atol=scale)


def test_is_close_to_float32_and_rounds(implementation):
    x, unit = normal(1, 12, 11, 64), bottleneck(normal, 64, 32, 32)
    mask = np.ones([1, 12, 11], bool)
    exact, y = (
        custom_ops.perforated_bottleneck(
            x, mask, **unit, implementation=implementation, precision=precision
        )
        for precision in ("float32", "bfloat16")
    )
    scale = np.abs(exact - x).max()
    assert 1e-5 * scale < np.abs(y - exact).max() < 0.02 * scale


def test_sums_keep_the_digits_of_float32(implementation):
    """Those of the result, whatever the factors were rounded to."""
    x, unit = normal(2, 40, 30, 48), bottleneck(normal, 48, 16, 16)
    y, sums = custom_ops.perforated_bottleneck(
        x,
        mask_of(2, 40, 30, share=0.5),
        **unit,
        sums=tf.reduce_sum(x, [1, 2]),
        implementation=implementation,
        precision="bfloat16",
    )
    expected = np.sum(y, (1, 2), np.float64)
    assert np.all(np.abs(sums - expected) < 2e-6 * np.sum(np.abs(y), (1, 2)))


def test_infinity_and_nan_stay(implementation):
    x = np.ones([1, 3, 3, 2], np.float32)
    x[0, 0, 0], x[0, 2, 2] = np.inf, np.nan
    y = custom_ops.perforated_conv2d(
        *(x, tf.ones([1, 1, 2, 3]), np.ones([1, 3, 3], bool)),
        implementation=implementation,
        precision="bfloat16",
    ).numpy()
    assert np.all(np.isinf(y[0, 0, 0])) and np.all(np.isnan(y[0, 2, 2]))
    assert np.all(y[0, 1, 1] == 2)


def test_errors_name_the_value(implementation):
    x, ones = normal(1, 4, 4, 3), np.ones([1, 4, 4], bool)
    unit = bottleneck(normal, 3, 2, 2)
    options = dict(implementation=implementation)
    with pytest.raises(ValueError, match="precision must be one of .*; got 'half'"):
        custom_ops.perforated_bottleneck(x, ones, **unit, precision="half", **options)
    with pytest.raises(ValueError, match="needs a float32 input; got float64"):
        custom_ops.perforated_conv2d(
            *(tf.cast(x, tf.float64), tf.zeros([1, 1, 3, 2], tf.float64), ones),
            precision="bfloat16",
            **options,
        )


_WITHOUT = """
import sys
import numpy as np
import custom_ops
from tests.custom_ops import test_precision as t
x, unit = t.normal(2, 9, 7, 40), t.bottleneck(t.normal, 40, 33, 64)
assert custom_ops.load() is not None
y = custom_ops.perforated_bottleneck(
    x, t.mask_of(2, 9, 7, share=0.6), **unit, precision="bfloat16",
    implementation="native",
)
np.save(sys.argv[1], y)
"""


@pytest.mark.long
def test_processors_without_bfloat16(tmp_path):
    """Kernels that are compiled without its instructions give the same."""
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    results = []
    for name, switches in (("all", ""), ("none", " -mno-amx-bf16 -mno-avx512bf16")):
        output = tmp_path / f"{name}.npy"
        environment = {**os.environ, "NVCC": ""}
        if switches:
            environment.update(CXX=f"c++{switches}", SACT_CACHE_DIR=str(tmp_path))
        command = [sys.executable, "-c", _WITHOUT, str(output)]
        done = subprocess.run(
            command,
            cwd=pathlib.Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
        )
        if "unrecognized command-line option" in done.stderr:
            pytest.skip("the compiler knows no such instructions")
        assert done.returncode == 0, done.stderr
        results.append(np.load(output))
    scale = np.abs(results[0]).max()
    # A sum that comes out a little different may round to the next number of 8 bits.
    assert np.abs(results[0] - results[1]).max() < 5e-3 * scale
    assert np.mean(np.abs(results[0] - results[1]) > 1e-5 * scale) < 0.2
