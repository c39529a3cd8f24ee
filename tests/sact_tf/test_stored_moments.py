"""Training with stored moments, where perforated execution skips what has halted."""

import numpy as np
import pytest
import tensorflow as tf

import custom_ops
import sact_tf


def pair(lively, family, model_type, **options):
    """Returns networks of equal weights, masked and not."""
    if family == "cifar":
        units, others = "3", {}
    else:
        units, others = "2_3_2_2", {"num_classes": 7}
    build = {"cifar": sact_tf.cifar_resnet, "imagenet": sact_tf.imagenet_resnet}[family]
    options = {"execution": "perforated", **options}
    tile_size = options.get("tile_size", 1)
    masked = build(units, model_type, base_channels=4, tile_size=tile_size, **others)
    lively(masked)
    return masked, masked.with_execution(options["execution"])


def loss_and_gradients(model, images):
    with tf.GradientTape() as tape:
        logits, end_points = model.with_end_points(
            images, training=False, trains_rule=True
        )
        loss = tf.reduce_sum(tf.sin(logits)) + tf.add_n(model.losses)
    gradients = tape.gradient(loss, model.trainable_variables)
    return loss, gradients, end_points


@pytest.mark.parametrize(
    "family, model_type, implementation, options",
    [
        ("imagenet", "sact", "native", {}),
        ("imagenet", "sact", "tensorflow", {}),
        ("imagenet", "act", "native", {}),
        ("imagenet", "vanilla", "native", {}),
        ("cifar", "sact", "native", {}),
        ("cifar", "sact", "native", {"execution": "tiled", "tile_size": 2}),
        ("cifar", "sact", "tensorflow", {"execution": "tiled", "tile_size": 2}),
    ],
)
def test_gradients_are_those_of_masked_execution(
    lively, family, model_type, implementation, options
):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    masked, other = pair(lively, family, model_type, **options)
    images = tf.random.stateless_normal([2, 40, 36, 3], [1, 2])
    loss, gradients, end_points = loss_and_gradients(masked, images)
    with custom_ops.default_implementation(implementation):
        run = tf.function(lambda x: loss_and_gradients(other, x)[:2])
        other_loss, other_gradients = run(images)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    for a, b, variable in zip(gradients, other_gradients, masked.trainable_variables):
        scale = np.abs(a).max()
        np.testing.assert_allclose(
            b, a, atol=1e-4 * scale + 1e-7, rtol=0, err_msg=variable.name
        )
    if model_type == "sact":  # something is skipped
        units = [v for k, v in end_points.items() if k.endswith("num_units")]
        assert any(len(np.unique(block)) > 1 for block in units)


def test_step_keeps_moments_and_trains_the_rest(lively):
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    models = pair(lively, "cifar", "sact")
    images = tf.random.stateless_normal([4, 24, 24, 3], [3, 4])
    labels = tf.constant([0, 1, 2, 3])
    before = {v.name: v.numpy() for v in models[0].variables}
    for model in models:
        model.compile("sgd", model.loss_function())
        model.freeze_moments()
        model.fit(images, labels, batch_size=4, epochs=2, verbose=0)
    for masked, other in zip(*(model.variables for model in models)):
        np.testing.assert_allclose(
            other, masked, atol=1e-5 * np.abs(masked).max() + 1e-7, err_msg=masked.name
        )
        is_same = np.array_equal(masked, before[masked.name])
        assert is_same == ("moving" in masked.name), masked.name


def test_moments_train_again(lively):
    model, _ = pair(lively, "cifar", "sact")
    images = tf.random.stateless_normal([2, 16, 16, 3], [3, 4])
    model.compile("sgd", model.loss_function())
    (variable,) = [v for v in model.variables if v is model.final_bn.moving_mean]
    before = variable.numpy()
    model.freeze_moments()
    model.fit(images, tf.constant([0, 1]), verbose=0)
    np.testing.assert_array_equal(variable, before)
    model.freeze_moments(False)
    model.fit(images, tf.constant([0, 1]), verbose=0)
    assert not np.array_equal(variable, before)
