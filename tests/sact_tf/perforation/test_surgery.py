"""Whole models: what is perforated, what it computes, and that it is saved."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import perforation
from sact_tf.networks import feedforward
from sact_tf.perforation import (
    CompactNetwork,
    PerforatedConv2D,
    PerforatedModel,
    impact,
    perforate,
    surgery,
    survey,
)

layers = keras.layers


def randomize(model):
    """Gives normalizations and biases values that matter."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape
            layer.set_weights([rng.uniform(0.5, 1.5, size) for _ in layer.weights])
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(size=layer.bias.shape))
    return model


def branches():
    """A network with everything that rows have to pass."""
    inputs = keras.Input([13, 12, 3])
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(inputs)
    x = layers.BatchNormalization(name="a_bn")(x)
    x = layers.ReLU()(x)
    one = layers.Conv2D(5, 1, activation="relu", name="one")(x)
    two = layers.Dropout(0.5)(layers.Conv2D(5, 1, name="two")(x))
    x = layers.Concatenate(name="merged")([layers.Add()([one, two]), one])
    x = layers.MaxPooling2D(3, 2, "same", name="pool1")(x)
    y = layers.Conv2D(6, (3, 5), activation="relu", padding="same", name="b")(x)
    z = layers.Conv2D(6, 3, padding="same", name="c")(y)
    z = layers.BatchNormalization(scale=False, name="c_bn")(z)
    x = layers.Add()([x[:, :, :, :6], z])  # rows meet a map
    x = layers.ZeroPadding2D(1)(x)
    x = layers.Conv2D(7, 3, 2, name="d")(x)
    x = layers.AveragePooling2D(2, 1, name="pool2")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="branches")


def dead_end():
    """A perforated map is itself an output; a dense convolution reads rows."""
    inputs = keras.Input([12, 12, 3])
    x = layers.Conv2D(4, 3, activation="elu", padding="same", name="a")(inputs)
    pooled = layers.GlobalMaxPooling2D(keepdims=True, name="global")(x)
    last = layers.Conv2D(4, 3, strides=2, use_bias=False, name="last")(x)
    last = layers.BatchNormalization(name="last_bn")(last)
    return keras.Model(inputs, [x, pooled, last])


@pytest.mark.parametrize(
    "build, mask", [(branches, "uniform"), (branches, "structure"), (dead_end, "grid")]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_implicit_equals_explicit(build, mask):
    model = perforate(randomize(build()), 0.4, mask)
    x = tf.random.normal([2, *model.input_shape[1:]])
    explicit = keras.Model(model.inputs, model.outputs)(x, training=False)
    implicit = model(x, training=False)
    frozen = tf.function(CompactNetwork(model))(x)
    for expected, *own in zip(*map(tf.nest.flatten, (explicit, implicit, frozen))):
        for result in own:
            np.testing.assert_allclose(result, expected, atol=1e-5, rtol=1e-5)
    plan = {p.step.layer.name: p.action for p in model._compact_network()._plan}
    assert plan["a"] == "perforate"
    if build is branches:
        assert plan["one"] == plan["two"] == "pointwise" and plan["merged"] == "rows"
        assert plan["pool1"] == "pool" and plan["c"] == "perforate"
    else:
        assert plan["last"] == "convolve"
        assert plan["global"] == "global"


def followers():
    """What may follow a convolution, some of which must stay by itself."""
    inputs = keras.Input([9, 8, 2])
    x = inputs
    for k, follow in enumerate(
        [
            [layers.LeakyReLU(0.2)],
            [layers.BatchNormalization(center=False), layers.Activation("relu")],
            [layers.BatchNormalization(), layers.ReLU(max_value=0.5)],
            [layers.ReLU(), layers.BatchNormalization()],
            [layers.ReLU(negative_slope=1.5), layers.Activation("linear")],
            [layers.BatchNormalization(), layers.Activation("tanh")],
        ]
    ):
        x = layers.Conv2D(4, 3, padding="same", name=f"conv{k}")(x)
        for layer in follow:
            x = layer(x)
        x = layers.Conv2D(5, 1, use_bias=k % 2 > 0, name=f"one{k}")(x)
        for layer in follow:
            x = type(layer).from_config({**layer.get_config(), "name": None})(x)
    y = layers.Conv2D(3, 2, strides=2, name="dense")(x)  # gives a map
    y = layers.BatchNormalization(axis=1)(y)
    y = layers.GlobalAveragePooling2D()(layers.ReLU()(y))
    return keras.Model(inputs, y)


def test_what_follows_a_convolution_is_computed_with_it():
    model = randomize(followers())
    made = perforate(model, {f"conv{k}": 0.5 for k in range(6)}, "uniform")
    x = tf.random.normal([3, 9, 8, 2])
    expected = keras.Model(made.inputs, made.outputs)(x, training=False)
    for implementation in ("auto", "tensorflow"):
        network = CompactNetwork(made, implementation=implementation)
        np.testing.assert_allclose(network(x), expected, atol=1e-5, rtol=1e-5)
    plans = {p.step.layer.name: p for p in network._plan}
    for kind in ("conv", "one"):
        slopes = [plans[f"{kind}{k}"].slope for k in range(6)]
        assert slopes == pytest.approx([0.2, 0.0, 1.0, 0.0, 1.0, 1.0])
        norms = [plans[f"{kind}{k}"].batch_norm is not None for k in range(6)]
        assert norms == [False, True, True, False, False, True]
    assert plans["dense"].action == "convolve" and plans["dense"].batch_norm is None
    # All but the last BatchNormalization and ReLU, and those that stay.
    assert sum(plan.is_folded for plan in plans.values()) == 2 * 6


def test_full_masks_are_dense():
    model = randomize(branches())
    full = {name: np.ones([c.height, c.width], bool) for name, c in found(model)}
    tables = {n: perforation.implicit.perforation_of(m) for n, m in full.items()}
    x = tf.random.normal([2, 13, 12, 3])
    network = CompactNetwork(model, tables)
    np.testing.assert_allclose(network(x), model(x), atol=1e-5)
    assert network.multiplies == CompactNetwork(model).multiplies


def found(model):
    return survey(model).convolutions.items()


def test_perforated_convolutions_take_their_places():
    dense = randomize(feedforward.nin(3, [16, 16, 3]))
    model = perforate(dense, 0.25)
    kinds = {layer.name: type(layer) for layer in model.layers}
    assert list(kinds) == [layer.name for layer in dense.layers]
    assert [n for n, k in kinds.items() if k is PerforatedConv2D] == [
        *("conv1", "conv2", "conv3")
    ]
    for own, layer in zip(model.layers, dense.layers):
        for name in ("kernel", "bias", "gamma", "moving_mean"):
            if getattr(layer, name, None) is not None:
                assert (getattr(own, name) == getattr(layer, name)).numpy().all()
    assert model.count_params() - dense.count_params() == sum(
        w.shape.num_elements()
        for w in model.weights
        if w.name.endswith(("kept:0", "nearest:0"))
    )
    assert surgery.realised(model) == {"conv1": 0.25, "conv2": 0.25, "conv3": 0.25}


def test_multiplies():
    model = feedforward.nin(10)
    dense = CompactNetwork(model).multiplies
    spatial = 1024 * 75 * 192, 256 * 25 * 96 * 192, 64 * 9 * 192 * 192
    one = 1024 * (192 * 160 + 160 * 96), 256 * 2 * 192**2, 64 * (192**2 + 1920)
    assert dense == sum(spatial) + sum(one)
    half = perforate(model, {"conv1": 0.25, "conv3": 0.25})
    kept = (spatial[0] + spatial[2] + one[0] + one[2]) // 4 + spatial[1] + one[1]
    assert CompactNetwork(half).multiplies == kept


def test_fractions_by_name():
    model = perforate(branches(), {"b": 0.5, "c": 1})
    assert list(surgery.realised(model)) == ["b"]


def test_models_within_models():
    inputs = keras.Input([12, 12, 3])
    inner = branches()
    inner = keras.Model(inner.input, inner.get_layer("pool1").output)
    x = inner(layers.ZeroPadding2D(((0, 1), (0, 0)))(inputs))
    outputs = layers.Dense(3)(layers.Flatten()(x))
    model = perforate(keras.Model(inputs, outputs), 1.0)
    images = tf.random.normal([2, 12, 12, 3])
    np.testing.assert_allclose(
        model(images), keras.Model(inputs, outputs)(images), atol=1e-6
    )
    assert "a" in surgery.realised(perforate(keras.Model(inputs, outputs), 0.5))


def test_sequential():
    model = keras.Sequential(
        [
            keras.Input([8, 8, 3]),
            layers.Conv2D(4, 3, activation="relu", name="first"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    assert list(surgery.realised(perforate(model))) == ["first"]


@pytest.mark.long
def test_vgg16_as_it_comes():
    model = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=7)
    names = [name for name, _ in found(model)]
    assert len(names) == 13 and names[0] == "block1_conv1"
    with pytest.warns(UserWarning, match="grid rather than a structure mask") as told:
        made = perforate(model, 0.5, "structure")
    assert "block1_conv1," in str(told[0].message)
    assert "block1_conv2" not in str(told[0].message)
    assert made.get_layer("block1_conv2").mask == "structure"
    assert made.get_layer("block2_conv1").mask == "grid"
    x = tf.random.normal([1, 32, 32, 3])
    explicit = keras.Model(made.inputs, made.outputs)
    np.testing.assert_allclose(made(x), explicit(x), atol=1e-5)


@pytest.mark.long
def test_residual_network_of_keras_applications():
    """Shortcuts meet rows; only global pooling comes after the last convolutions."""
    model = feedforward.resnet50(5, (64, 64, 3))
    names = [name for name, _ in found(model)]
    assert len(names) == 17 and names[0] == "conv1_conv"
    made = perforate(model, 0.5)
    assert list(surgery.realised(made)) == names
    x = tf.random.normal([1, 64, 64, 3])
    explicit = keras.Model(made.inputs, made.outputs)
    np.testing.assert_allclose(made(x), explicit(x), atol=1e-5)


def test_files(tmp_path):
    model = perforate(randomize(branches()), 0.5, "uniform")
    x = tf.random.normal([2, 13, 12, 3])
    model.save(str(tmp_path / "model.keras"))
    again = keras.models.load_model(str(tmp_path / "model.keras"))
    assert type(again) is PerforatedModel
    assert (again(x).numpy() == model(x).numpy()).all()
    assert (again.predict(x, verbose=0) == model.predict(x, verbose=0)).all()


def test_loaded_tables_are_those_that_run(tmp_path):
    """Implicit interpolation has not kept the tables of before."""
    one, two = (perforate(branches(), 0.5, "uniform", seed=s) for s in (1, 2))
    x = tf.random.normal([2, 13, 12, 3])
    expected = one(x)
    run = tf.function(two)
    run(x)
    one.save_weights(str(tmp_path / "w.weights.h5"))
    two.load_weights(str(tmp_path / "w.weights.h5"))
    np.testing.assert_allclose(run(x), expected, atol=1e-6)


def test_training_keeps_masks_and_trains_the_rest():
    model = perforate(feedforward.nin(3, [8, 8, 3]), 0.5)
    before = [w.numpy() for w in model.weights]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(tf.random.normal([4, 8, 8, 3]), tf.constant([0, 1, 2, 0]), verbose=0)
    for old, weight in zip(before, model.weights):
        is_table = weight.name.endswith(("kept:0", "nearest:0"))
        if is_table or weight.name.endswith("kernel:0"):
            assert (old == weight.numpy()).all() == is_table, weight.name


def test_impact_bounds_the_change_of_a_linear_loss():
    values = tf.random.normal([1, 3, 4, 5])
    gradients = tf.random.normal([1, 3, 4, 5])
    change = np.abs(np.sum(values * gradients, -1))[0]
    scores = impact.impact(values, gradients).numpy()
    assert (scores >= change - 1e-6).all() and (scores > change + 1e-3).any()


@pytest.mark.parametrize("activation", [None, "relu"])
def test_impact_scores(activation):
    """Against the loss with each position's output, before the activation, at zero."""
    inputs = keras.Input([4, 5, 2])
    conv = layers.Conv2D(3, 3, activation=activation, padding="same", name="conv")
    x = layers.AveragePooling2D(2, 2, "same")(conv(inputs))
    x = layers.Dense(3)(layers.Flatten()(x))
    model = keras.Model(inputs, x)
    images = tf.random.normal([6, 4, 5, 2])
    labels = tf.constant([0, 1, 2, 0, 1, 2])
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    scores = impact.impact_scores(model, batches, ["conv"])["conv"]
    v = impact.linear_output(conv, images)
    with tf.GradientTape() as tape:
        tape.watch(v)
        y = v if activation is None else tf.nn.relu(v)
        y = model.layers[-1](layers.Flatten()(layers.AveragePooling2D(2, 2, "same")(y)))
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, y)
    expected = np.abs(tape.gradient(losses, v) * v).sum(-1).mean(0)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    pair = impact.impact_scores(model, (images.numpy(), labels.numpy()), ["conv"])
    np.testing.assert_allclose(pair["conv"], expected, atol=1e-6)
    made = perforate(model, 0.3, "impact", examples=batches)
    kept = made.get_layer("conv").kept.numpy()
    assert set(kept) == set(np.argsort(-expected.ravel())[:6])


def test_depthwise_and_grouped_stay_dense():
    inputs = keras.Input([8, 8, 4])
    x = layers.Conv2D(4, 3, groups=2, name="grouped")(inputs)
    x = layers.DepthwiseConv2D(3, name="deep")(x)
    x = layers.Conv2D(4, 3, padding="same", name="plain")(x)
    x = layers.GlobalAveragePooling2D()(x)
    with pytest.warns(UserWarning, match="grouped has groups=2 .*deep is depthwise"):
        model = perforate(keras.Model(inputs, x))
    assert list(surgery.realised(model)) == ["plain"]


def no_pooling():
    inputs = keras.Input([8, 8, 3])
    return keras.Model(inputs, layers.Dense(2)(layers.Conv2D(4, 3)(inputs)))


def unknown_size():
    inputs = keras.Input([None, None, 3])
    x = layers.Conv2D(4, 3)(inputs)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))


class Subclassed(keras.Model):
    pass


@pytest.mark.parametrize(
    "build, message",
    [
        (no_pooling, "no convolution larger than 1x1 that a pooling follows .conv2d"),
        (unknown_size, "static mask needs images of known size; build the model with"),
        (lambda: keras.Sequential([layers.Conv2D(3, 3)]), "has no input shape"),
        (Subclassed, "class Subclassed, whose layers are called by code of its own"),
        (lambda: "model", "must be a Functional or Sequential model .* got builtins.s"),
        (lambda: sact_tf.cifar_resnet("1", "sact", base_channels=4), "for each image"),
    ],
)
def test_models_that_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        perforate(build())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(keep_fraction=0), "keep_fraction must be a finite number > 0 and <= 1"),
        (dict(keep_fraction={"a": 2}), "keep_fraction of a must be .* got 2"),
        (dict(keep_fraction={"no": 0.5}), "names 'no'; expected some of a, b, c, d"),
        (dict(keep_fraction={"one": 0.5}), "names 'one'; expected some of a"),
        (dict(mask="chess"), "mask must be one of uniform, grid, structure, impact"),
        (dict(mask="impact"), "examples must be given for impact masks"),
        (dict(mask="impact", examples=[[], []]), "at least one; got 0 and 0"),
        (dict(mask="impact", examples="train"), "must be a pair of images and labels"),
        (dict(seed=-1), "seed must be"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        perforate(branches(), **arguments)
