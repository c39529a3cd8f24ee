"""SavedModels that hold the first form of the native ops, with a mask alone."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import custom_ops

DIRECTORY = pathlib.Path(__file__).parent / "first_ops"
OPS = {
    "FoldBatchNorm",
    "MaskedAccumulate",
    "PerforatedBasicUnit",
    "PerforatedBottleneck",
    "PerforatedConv2D",
    "ProjectionBottleneck",
}


def normal(*shape, seed=0):
    values = np.random.default_rng(seed).normal(size=shape)
    return tf.constant(values.astype(np.float32))


def affine(channels, seed=1):
    return normal(channels, seed=seed), normal(channels, seed=seed + 1)


def run(x, mask, **options):
    """What was saved: every op once, with these weights."""
    preactivation = custom_ops.fold_batch_norm(
        *affine(3), normal(3, seed=5), normal(3, seed=6) ** 2, 1e-3, **options
    )
    inner = [affine(2, 7), affine(4, 9)]
    filters = [normal(1, 1, 3, 2), normal(3, 3, 2, 4), normal(1, 1, 4, 3)]
    unit = (preactivation, filters, inner, normal(3))
    projection = normal(1, 1, 3, 3), normal(3)
    first, sums = custom_ops.projection_bottleneck(x, *unit, *projection, **options)
    y, sums = custom_ops.perforated_bottleneck(first, mask, *unit, sums, **options)
    filters = [normal(3, 3, 3, 2), normal(3, 3, 2, 3)]
    y = custom_ops.perforated_basic_unit(
        y, mask, preactivation, filters, inner[0], normal(3), (0.1, 0.0), **options
    )
    scale, shift = preactivation
    score = custom_ops.perforated_conv2d(
        y,
        normal(3, 3, 3, 1),
        mask,
        bias=normal(1),
        input_scale=scale,
        input_shift=shift,
        input_slope=0.0,
        **options,
    )
    weight = tf.cast(mask, tf.float32) * tf.sigmoid(score[..., 0])
    total = custom_ops.masked_accumulate(first, y, weight, **options)
    return {"total": total, "sums": sums, "score": score}


def test_loads_and_gives_the_same():
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    model = tf.saved_model.load(str(DIRECTORY))
    for shape, share in (((2, 5, 6), 0.4), ((1, 4, 3), 1.0), ((1, 4, 3), 0.0)):
        x = normal(*shape, 3, seed=11)
        mask = np.random.default_rng(12).random(shape) < share
        got = model.run(x, mask)
        expected = run(x, mask, implementation="tensorflow")
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            scale = np.abs(value).max() + 1e-6
            np.testing.assert_allclose(
                got[key], value, atol=1e-5 * scale, rtol=0, err_msg=key
            )


def test_holds_the_first_form_of_every_op():
    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((DIRECTORY / "saved_model.pb").read_bytes())
    functions = proto.meta_graphs[0].graph_def.library.function
    used = {node.op for function in functions for node in function.node_def}
    assert OPS < used and not any(op + "At" in used for op in OPS)
