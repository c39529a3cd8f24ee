"""Blocks in one native operation, against the loop of steps."""

import contextlib
import threading

import numpy as np
import pytest
import tensorflow as tf

import custom_ops
import sact_tf
from sact_tf import native_blocks
from sact_tf.layers import BatchNorm
from sact_tf.units import BottleneckUnit

pytestmark = pytest.mark.skipif(
    custom_ops.load() is None, reason="the native kernels can not be compiled here"
)


def network(kind="cifar", model_type="sact", **options):
    """A perforated network, whose positions halt at different units."""
    make = sact_tf.cifar_resnet if kind == "cifar" else sact_tf.imagenet_resnet
    options = dict(execution="perforated", num_classes=5, tau=0.01) | options
    model = make("3" if kind == "cifar" else "2_3_3_2", model_type, **options)
    model(tf.zeros([1, 32, 32, 3]))
    for b, block in enumerate(model.blocks):
        for k, head in enumerate(block.heads):
            for variable in head.trainable_variables:
                shape, seed = variable.shape, [b, k]
                if "kernel" in variable.name:
                    variable.assign(0.3 * tf.random.stateless_normal(shape, seed))
                if "bias" in variable.name:
                    variable.assign(tf.fill(shape, -1.0))
    return model


def images(batch=2, height=37, width=32):
    return tf.random.stateless_normal([batch, height, width, 3], [1, 2])


@contextlib.contextmanager
def counted(monkeypatch):
    """Gives a list that grows with every native block."""
    calls = []
    whole = custom_ops.perforated_block

    def count(*args, **kwargs):
        calls.append(args)
        return whole(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(custom_ops, "perforated_block", count)
        yield calls


def run(model, x, monkeypatch, is_native):
    """Returns logits, end points, losses, and how many blocks ran natively."""
    with counted(monkeypatch) as calls, monkeypatch.context() as patch:
        if not is_native:
            patch.setattr(native_blocks, "parameters", lambda *args: None)
        logits, end_points = model.with_end_points(x, training=False)
        return logits, end_points, model.losses, len(calls)


@pytest.mark.parametrize("kind", ["cifar", "imagenet"])
def test_is_the_loop(kind, monkeypatch):
    model, x = network(kind), images()
    logits, got, losses, calls = run(model, x, monkeypatch, True)
    wanted, expected, wanted_losses, no_calls = run(model, x, monkeypatch, False)
    assert calls == len(model.blocks) and not no_calls
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    assert set(got) == set(expected)
    units = 0
    for name, value in expected.items():
        if not tf.is_tensor(value):
            assert got[name] == value
            continue
        assert got[name].shape == value.shape and got[name].dtype == value.dtype, name
        if value.dtype.is_floating:
            scale = max(1.0, float(tf.reduce_max(tf.abs(value))))
            np.testing.assert_allclose(got[name], value, atol=2e-4 * scale)
        else:
            np.testing.assert_array_equal(got[name], value, err_msg=name)
        if name.endswith("num_units"):
            units = max(units, len(np.unique(value)))
    assert units == 3  # somewhere positions halt at each


def test_is_masked_execution(monkeypatch):
    model = network("imagenet")
    logits, end_points, _, calls = run(model, images(), monkeypatch, True)
    masked = model.with_options(execution="masked")
    wanted, expected, _, no_calls = run(masked, images(), monkeypatch, True)
    assert calls and not no_calls
    np.testing.assert_allclose(logits, wanted, atol=1e-3)
    np.testing.assert_array_equal(end_points["flops"], expected["flops"])


@pytest.mark.parametrize(
    "options",
    [
        dict(model_type="act"),
        dict(model_type="pact"),
        dict(execution="masked"),
        dict(execution="tiled", tile_size=4),
        dict(tile_size=2),
    ],
    ids=str,
)
def test_what_it_does_not_do_runs_in_the_loop(options, monkeypatch):
    model = network(**options)
    assert run(model, images(), monkeypatch, True)[-1] == 0


def test_units_and_heads_of_ones_own_run_in_the_loop(monkeypatch):
    class Own(sact_tf.SACTBlock):
        pass

    class Louder(BottleneckUnit):
        def run_active(self, x, active, sums, precision="float32"):
            y, sums = super().run_active(x, active, sums, precision)
            return 2 * y, 2 * sums

    def norm(name):
        return BatchNorm(0.9, 1e-3, tf.nn.relu, name)

    x = tf.random.stateless_normal([1, 5, 6, 8], [3, 4])
    for unit, expected in ((BottleneckUnit, 1), (Louder, 0)):
        units = [unit(8, 4, 1, norm, name=f"unit_{k}") for k in (1, 2, 3)]
        block = Own(units, execution="perforated")
        with counted(monkeypatch) as calls:
            block(x, training=False)
        assert len(calls) == expected


def test_units_of_several_constants_run_in_the_loop(monkeypatch):
    def norm(epsilon):
        return lambda name: BatchNorm(0.9, epsilon, tf.nn.relu, name)

    x = tf.random.stateless_normal([1, 5, 6, 8], [3, 4])
    units = [BottleneckUnit(8, 4, 1, norm(10.0**-k), name=f"u{k}") for k in (1, 2, 3)]
    block = sact_tf.SACTBlock(units, execution="perforated")
    with counted(monkeypatch) as calls:
        got = block(x, training=False)
    assert not calls
    masked = sact_tf.SACTBlock(units)
    masked(x)
    masked.set_weights(block.get_weights())
    np.testing.assert_allclose(got, masked(x, training=False), atol=1e-5)


def test_imposed_halting_is_that_of_the_loop(monkeypatch):
    model, x = network(), images(height=32)
    for block in model.blocks:
        block.impose_units(lambda height, width: tf.ones([height, width], tf.int32) * 2)
    _, got, _, calls = run(model, x, monkeypatch, True)
    _, expected, _, _ = run(model, x, monkeypatch, False)
    assert calls
    for name in ("flops", "block_1/num_units", "block_3/num_units"):
        np.testing.assert_array_equal(got[name], expected[name])
    assert set(np.unique(got["block_2/num_units"])) == {2}


def test_bfloat16(monkeypatch):
    model = network("imagenet", precision="bfloat16")
    for block in model.blocks:  # where rounding would decide
        block.impose_units(lambda height, width: 2 * tf.ones([height, width], tf.int32))
    logits, _, _, calls = run(model, images(), monkeypatch, True)
    looped, _, _, _ = run(model, images(), monkeypatch, False)
    assert calls
    np.testing.assert_allclose(logits, looped, atol=0.02 * np.abs(looped).max())
    for block in model.blocks:
        block.precision = "float32"
    exact, _, _, _ = run(model, images(), monkeypatch, True)
    assert not np.array_equal(logits, exact)
    np.testing.assert_allclose(logits, exact, atol=0.1 * np.abs(exact).max())


def test_gradient_of_an_image_in_inference(monkeypatch):
    model, x = network(), tf.Variable(images(1, 32, 32))

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=False)[:, 0])
        return tape.gradient(loss, x)

    got = gradient()
    monkeypatch.setattr(native_blocks, "parameters", lambda *args: None)
    expected = gradient()
    largest = float(tf.reduce_max(tf.abs(expected)))
    assert largest > 0
    np.testing.assert_allclose(got, expected, atol=1e-3 * largest)


def test_in_many_threads_at_once():
    model = network()
    function = tf.function(lambda images: model(images, training=False))
    inputs = [images(1 + k % 3, 32, 32) + 0.1 * k for k in range(6)]
    expected = [function(x).numpy() for x in inputs]
    got = [[] for _ in inputs]

    def work(k):
        for _ in range(10):
            got[k].append(function(inputs[k]).numpy())

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, wanted in zip(got, expected):
        assert len(results) == 10
        for result in results:
            np.testing.assert_array_equal(result, wanted)


def test_exported(tmp_path, monkeypatch):
    model, x = network(), images(3, 32, 32)
    function = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec([None, 32, 32, 3])],
    )
    module = tf.Module()
    module.model, module.serve = model, function
    tf.saved_model.save(module, tmp_path)
    graph = function.get_concrete_function().graph
    assert "PerforatedBlock" in {op.type for op in graph.get_operations()}
    loaded = tf.saved_model.load(tmp_path)
    expected = run(model, x, monkeypatch, False)[0]
    np.testing.assert_allclose(loaded.serve(x), expected, atol=1e-4)
    assert loaded.serve(x[:0]).shape == [0, 5]
