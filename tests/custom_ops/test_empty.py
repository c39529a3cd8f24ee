"""An empty batch gives empty results, eager and in a graph that does not know it."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import custom_ops


@pytest.fixture(params=("native", "tensorflow"))
def implementation(request):
    if request.param == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    return request.param


def normal(*shape):
    return tf.constant(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def affine(channels):
    return normal(channels), normal(channels)


NORMS = [affine(6), affine(5)]
FILTERS = [normal(1, 1, 4, 6), normal(3, 3, 6, 5), normal(1, 1, 5, 4)]


def convolution(x, mask, outputs=7, **options):
    filters, vectors = normal(3, 3, 4, outputs), [normal(outputs), *affine(4)]
    inputs = [x, filters, *vectors]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        names = ("bias", "input_scale", "input_shift")
        arguments = {**dict(zip(names, vectors)), **options}
        y = custom_ops.perforated_conv2d(x, filters, mask, **arguments)
    return y, *tape.gradient(y, inputs)


def halting_head(x, mask, **options):
    return convolution(x, mask, outputs=1, **options)


def with_an_activation(x, mask, **options):
    return convolution(x, mask, activation=tf.sigmoid, **options)


def bottleneck(x, mask, **options):
    sums = tf.reduce_sum(x, [1, 2])
    return custom_ops.perforated_bottleneck(
        x, mask, affine(4), FILTERS, NORMS, normal(4), sums, **options
    )


def bottleneck_without_sums(x, mask, **options):
    return custom_ops.perforated_bottleneck(
        x, mask, affine(4), FILTERS, NORMS, normal(4), **options
    )


def projection(x, mask, stride=1, **options):
    unit = (affine(4), FILTERS, NORMS, normal(4))
    shortcut = normal(1, 1, 4, 4), normal(4)
    return custom_ops.projection_bottleneck(x, *unit, *shortcut, stride, **options)


def strided_projection(x, mask, **options):
    return projection(x, mask, stride=2, **options)


def basic_unit(x, mask, **options):
    filters = [normal(3, 3, 4, 6), normal(3, 3, 6, 4)]
    return custom_ops.perforated_basic_unit(
        x, mask, affine(4), filters, affine(6), normal(4), **options
    )


def accumulate(x, mask, **options):
    is_found = isinstance(mask, custom_ops.ActivePositions)
    weight = tf.cast(mask.mask if is_found else mask, tf.float32)
    options["positions"] = mask if is_found else None
    return custom_ops.masked_accumulate(x, 2.0 * x, weight, **options)


def find(x, mask, implementation):
    return custom_ops.find_positions(mask, implementation)


def tiles(x, mask, implementation):
    if isinstance(mask, custom_ops.ActivePositions):
        mask = mask.mask
    return custom_ops.add_on_tiles(x, mask, 2, 1, lambda t, _: t[:, 1:-1, 1:-1])


FUNCTIONS = [
    convolution,
    halting_head,
    with_an_activation,
    bottleneck,
    bottleneck_without_sums,
    projection,
    strided_projection,
    basic_unit,
    accumulate,
    find,
    tiles,
]


@pytest.mark.parametrize("form", ["mask", "positions"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_gives_empty_results(implementation, function, form):
    def run(x, mask):
        if form == "positions":
            mask = custom_ops.find_positions(mask, implementation)
        return function(x, mask, implementation=implementation)

    signature = [
        tf.TensorSpec([None, None, None, 4]),
        tf.TensorSpec([None, None, None], tf.bool),
    ]
    graph = tf.function(run, input_signature=signature)
    one, none = (
        graph(normal(batch, 6, 5, 4), tf.ones([batch, 6, 5], tf.bool))
        for batch in (1, 0)
    )
    eager = run(normal(0, 6, 5, 4), np.ones([0, 6, 5], bool))
    for got in (none, eager):
        tf.nest.map_structure(check_empty, got, one)


def check_empty(got, of_one_image):
    """Has the same sizes but for the batch; what has no batch, gradients, is zero."""
    got, of_one_image = np.asarray(got), np.asarray(of_one_image)
    if of_one_image.shape[0] == 1 and of_one_image.ndim > 1:
        assert got.shape == (0, *of_one_image.shape[1:])
    elif got.dtype.kind == "i":
        assert got.shape == (0,)  # flat positions
    else:
        np.testing.assert_array_equal(got, np.zeros_like(of_one_image))


def test_no_positions_either(implementation):
    """Images without rows or columns."""
    filters, options = normal(3, 3, 4, 2), dict(implementation=implementation)
    for shape in ((2, 0, 5), (2, 5, 0)):
        x, mask = normal(*shape, 4), np.ones(shape, bool)
        y = custom_ops.perforated_conv2d(x, filters, mask, **options)
        assert y.shape == (*shape, 2)
        y, sums = bottleneck(x, mask, **options)
        assert y.shape == x.shape
        np.testing.assert_array_equal(sums, np.zeros([2, 4]))
        assert basic_unit(x, mask, **options).shape == x.shape
        assert accumulate(x, mask, **options).shape == x.shape


@pytest.mark.long
def test_where_convolutions_are_those_of_onednn():
    """They give an empty batch the wrong shape; TensorFlow chooses by the processor."""
    tests = "tensorflow and mask and (projection or basic_unit)"
    command = [sys.executable, "-m", "pytest", __file__, "-k", tests]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
