"""Segmentation networks: any size, executions, checkpoints, files, training steps."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf.checkpoint_kinds import CheckpointKindError
from sact_tf.checkpoints import slim_variables
from sact_tf.pretrained import load_first_weights
from sact_tf.segmentation import VOID, SegmentationNetwork
from sact_tf.segmentation.network import HEAD


def noise(height, width, batch=1):
    return tf.random.stateless_uniform([batch, height, width, 3], [1, 2], -1, 1)


@pytest.mark.parametrize(
    "model_type",
    [
        "vanilla",
        "sact",
        "iterative",
        pytest.param("act", marks=pytest.mark.long),
        pytest.param("pact", marks=pytest.mark.long),
    ],
)
def test_logits_have_the_size_of_the_image(make, model_type):
    model = make(model_type)
    for height, width in ((1, 1), (33, 50)):
        logits, end_points = model.with_end_points(noise(height, width), False)
        assert logits.shape == [1, height, width, 3]
        assert np.all(np.isfinite(logits))
        # Those of halting heads are not an ordinary network's.
        assert int(end_points["flops"][0]) < 1.05 * int(end_points["dense_flops"][0])
    assert model(noise(8, 8), output_size=[20, 30]).shape == [1, 20, 30, 3]


def test_double_stages_are_one_scale():
    network = sact_tf.iterative_net(
        max_iterations=(1, 1, 2, 1), double=True, num_classes=0, base_channels=2
    )
    model = SegmentationNetwork(network, 3, 4, bins=(1,))
    assert len(network.blocks) == 8 and len(model.head.laterals) == 3
    assert model(noise(20, 36)).shape == [1, 20, 36, 3]


@pytest.mark.parametrize("model_type", ["sact", "iterative"])
def test_perforated_execution_agrees(make, lively, model_type):
    model = lively(make(model_type, "1_4_3_3"))
    perforated = model.with_execution("perforated")
    assert perforated.execution == "perforated" and model.execution == "masked"
    images = noise(70, 90)
    expected, wanted = model.with_end_points(images, False)
    logits, end_points = perforated.with_end_points(images, False)
    np.testing.assert_allclose(logits, expected, atol=2e-3, rtol=1e-3)
    assert end_points["flops"] == wanted["flops"]


def test_the_backbone_is_the_networks_own(make):
    """A weight of each block changes logits, and only active positions count."""
    model = make("sact")
    images = noise(64, 64)
    before = model(images, training=False).numpy()
    _, end_points = model.network.with_end_points(images, training=False)
    _, own = model.with_end_points(images, training=False)
    assert own["flops"] == end_points["flops"]
    for block in model.blocks:
        kernel = next(v for v in block.trainable_variables if "kernel" in v.name)
        kernel.assign_add(0.5 * tf.ones_like(kernel))
        after = model(images, training=False).numpy()
        assert not np.allclose(after, before)
        before = after


def test_losses_are_ponder_cost_and_weight_decay(make):
    plain, dear = make("sact", tau=0.0), make("sact", tau=0.5)
    dear.set_weights(plain.get_weights())
    images = noise(32, 32)
    _, end_points = dear.with_end_points(images, training=False)
    cost = sum(
        np.mean(end_points[f"{block}/ponder_cost"])
        for block in end_points["block_scopes"]
    )
    with_cost = float(tf.add_n(dear.losses))
    plain(images, training=False)
    np.testing.assert_allclose(
        with_cost - float(tf.add_n(plain.losses)), 0.5 * cost, rtol=1e-4
    )
    kernels = [v for v in plain.trainable_variables if "kernel" in v.name]
    decay = sum(0.5e-4 * float(tf.reduce_sum(tf.square(v))) for v in kernels)
    np.testing.assert_allclose(float(tf.add_n(plain.losses)), decay, rtol=1e-4)


def test_checkpoints_and_files(make, lively, tmp_path):
    model = make("sact")
    lively(model)
    images = noise(40, 40)
    expected = model(images, training=False)
    prefix = sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-3"), 3)
    other = make("sact")
    names = sact_tf.load_slim_checkpoint(other, prefix)
    assert f"{HEAD}/pool_1/conv/weights" in names
    assert "resnet_v2/block2/unit_1/bottleneck_v2/conv1/weights" in names
    np.testing.assert_array_equal(other(images, training=False), expected)
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_allclose(loaded(images, training=False), expected, atol=1e-5)


def test_checkpoints_of_another_kind_are_named(make, tmp_path):
    network = sact_tf.imagenet_resnet("1_2_1_1", "sact", 5, base_channels=2)
    prefix = sact_tf.save_slim_checkpoint(network, str(tmp_path / "model.ckpt-0"))
    model = make("sact")
    with pytest.raises(
        CheckpointKindError, match="of a classification network, not of a segmentation"
    ):
        sact_tf.load_slim_checkpoint(model, prefix)
    prefix = sact_tf.save_slim_checkpoint(model, str(tmp_path / "seg" / "model.ckpt-0"))
    with pytest.raises(CheckpointKindError, match="that of a segmentation network"):
        sact_tf.load_slim_checkpoint(network, prefix)


def test_starts_from_an_iterative_network(make, tmp_path):
    options = dict(num_classes=5, base_channels=2)
    source = sact_tf.iterative_net("iterative", [1, 2, 1, 1], **options)
    path = sact_tf.save_slim_checkpoint(source, str(tmp_path / "model.ckpt-1"))
    model = make("iterative")
    loaded = load_first_weights(model, path)
    assert set(loaded) == set(slim_variables(model.network))
    with pytest.raises(ValueError, match="of an iterative network, which fits only"):
        load_first_weights(make("sact"), path)


def test_the_training_step_by_hand(make):
    """Momentum's first step is the rate times the gradient of the stated loss."""
    model = make("sact", tau=0.1)
    images = noise(32, 32, batch=2)
    labels = tf.random.stateless_uniform([2, 32, 32], [3, 4], 0, 3, tf.int32)
    labels = tf.where(tf.range(32) < 5, VOID, labels)
    weights = [1.0, 2.0, 0.5]
    model.weigh_classes(weights)
    model.compile(sact_tf.optimization.Momentum(0.1, momentum=0.9))
    copy = make("sact", tau=0.1)
    copy.set_weights(model.get_weights())
    with tf.GradientTape() as tape:
        logits = copy(images, training=True)
        each = keras.losses.sparse_categorical_crossentropy(
            tf.maximum(labels, 0), logits, from_logits=True
        )
        weight = tf.gather(weights, tf.maximum(labels, 0))
        weight *= tf.cast(labels >= 0, tf.float32)
        loss = tf.reduce_sum(each * weight) / tf.reduce_sum(weight)
        loss += tf.add_n(copy.losses)
    gradients = tape.gradient(loss, copy.trainable_variables)
    before = [v.numpy() for v in model.trainable_variables]
    logs = model.train_step({"image": images, "labels": labels})
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-4)
    for old, new, gradient in zip(before, model.trainable_variables, gradients):
        np.testing.assert_allclose(new, old - 0.1 * gradient, atol=2e-4)


@pytest.mark.parametrize(
    "options", [dict(), dict(estimator="reinforce", baseline="linear")]
)
def test_pact_trains(make, options):
    model = make("pact", tau=0.01, **options)
    model.compile(sact_tf.optimization.Momentum(0.1, momentum=0.9))
    images, labels = noise(32, 32, 2), tf.zeros([2, 32, 32], tf.int32)
    head = model.blocks[1].heads[0].trainable_variables[0]
    before = head.numpy()
    logs = model.train_step({"image": images, "labels": labels})
    assert np.isfinite(logs["loss"])
    assert not np.array_equal(before, head.numpy())


@pytest.mark.parametrize(
    "num_classes, network, message",
    [
        (1, dict(num_classes=0), "num_classes must be an integer from 2"),
        (3, dict(num_classes=4), "network must have no classifier .*num_classes=4"),
        (
            3,
            dict(num_classes=0, model_type="pondernet"),
            "network must not be of model_type='pondernet'",
        ),
    ],
)
def test_what_cannot_be_is_refused(num_classes, network, message):
    network = sact_tf.imagenet_resnet("1_1_1_2", base_channels=2, **network)
    with pytest.raises(ValueError, match=message):
        SegmentationNetwork(network, num_classes, 4)
