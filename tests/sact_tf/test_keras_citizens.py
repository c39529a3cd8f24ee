"""Blocks, heads, rules, units and networks save, load and clone as Keras' own do."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import ACTBlock, AdaptiveBlock, PlainBlock, SACTBlock
from sact_tf.halting import CumulativeHalting, SpatialHaltingScore
from sact_tf.layers import BatchNorm, leaky_relu
from sact_tf.units import BasicUnit, BottleneckUnit


@keras.utils.register_keras_serializable("tests")
class OwnUnit(keras.layers.Layer):
    """A user's unit that can be saved."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.conv = keras.layers.Conv2D(channels, 3, padding="same", activation="tanh")

    def build(self, input_shape):
        self.conv.build(input_shape)
        super().build(input_shape)

    def call(self, x):
        return x + self.conv(x)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


def batch_norm(name):
    return BatchNorm(0.9, 1e-3, leaky_relu(0.1), name=name)


def relu_batch_norm(name):
    return BatchNorm(0.9, 1e-3, tf.nn.relu, name=name)


def units(kind):
    if kind == "own":
        return [OwnUnit(4) for _ in range(3)]
    if kind == "basic":
        return [BasicUnit(4, 1, batch_norm, batch_norm, k == 0) for k in range(3)]
    if kind == "shared":
        return [OwnUnit(4)] * 3
    return [BottleneckUnit(4, 2, 1, relu_batch_norm, 1e-4) for _ in range(3)]


BLOCKS = {
    "plain": lambda units: PlainBlock(units),
    "act": lambda units: ACTBlock(units, 0.3, 0.05, batch_norm, early_stopping=True),
    "sact": lambda units: SACTBlock(units, tau=0.2, weight_decay=1e-3, tile_size=2),
    "adaptive": lambda units: AdaptiveBlock(
        units, CumulativeHalting(0.1), "position", 0.4, head=SpatialHaltingScore
    ),
}


def functional(block, kind, channels=4):
    inputs = keras.Input([None, None, 3])
    x = keras.layers.Conv2D(channels, 3, padding="same")(inputs)
    x = BLOCKS[block](units(kind))(x)
    x = BLOCKS[block](units(kind))(x)
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs)


def images(side=9):
    return tf.random.stateless_normal([2, side, side, 3], [1, 2])


def check_same(model, other):
    assert len(model.variables) == len(other.variables)
    np.testing.assert_array_equal(other(images()), model(images()))
    np.testing.assert_allclose(
        [float(loss) for loss in other.losses], [float(loss) for loss in model.losses]
    )


CASES = [(b, "basic") for b in BLOCKS] + [
    ("sact", "own"),
    ("act", "bottleneck"),
    ("adaptive", "shared"),
]


def _by_default(block, kind, ending):
    """Each block, each kind and each ending, but not all of all."""
    return ending == "keras" and kind in ("basic", "shared") or kind == "own"


@pytest.mark.parametrize(
    "block, kind, ending",
    [
        pytest.param(*case, marks=[] if _by_default(*case) else [pytest.mark.long])
        for case in ((b, k, e) for b, k in CASES for e in ("keras", "h5"))
    ],
)
def test_a_functional_model_with_a_block_is_saved(
    lively, tmp_path, block, kind, ending
):
    model = functional(block, kind)
    lively(model)
    names = {variable.name for variable in model.variables}
    assert len(names) == len(model.variables)
    path = str(tmp_path / f"model.{ending}")
    model.save(path)
    loaded = keras.models.load_model(path)
    check_same(model, loaded)
    assert len({variable.name for variable in loaded.variables}) == len(names)
    original, copy = model.layers[2], loaded.layers[2]
    assert type(original) is type(copy)
    assert original.get_config() == copy.get_config()


@pytest.mark.parametrize("block, kind", CASES)
def test_a_functional_model_with_a_block_is_cloned(lively, block, kind):
    model = functional(block, kind)
    lively(model)
    clone = keras.models.clone_model(model)
    assert not np.allclose(clone(images()), model(images()))
    clone.set_weights(model.get_weights())
    check_same(model, clone)


class Unsaveable(keras.layers.Layer):
    """Holds what no file can."""

    def __init__(self, function):
        super().__init__(name="my_unit")
        self.function = function

    def call(self, x):
        return x


def test_units_that_cannot_be_saved_are_named(tmp_path):
    inputs = keras.Input([None, None, 3])
    model = keras.Model(inputs, SACTBlock([Unsaveable(lambda x: x)])(inputs))
    with pytest.raises(NotImplementedError, match="unit 'my_unit' .*Unsaveable.*saved"):
        model.save(tmp_path / "model.keras")


@pytest.mark.parametrize("model_type", sact_tf.halting.model_types())
def test_variables_have_names_of_their_own(tmp_path, model_type):
    network = sact_tf.cifar_resnet("2", model_type, base_channels=4)
    names = [variable.name for variable in network.variables]
    assert len(set(names)) == len(names)
    path = str(tmp_path / "weights.h5")
    network.save_weights(path)
    other = sact_tf.cifar_resnet("2", model_type, base_channels=4)
    other.load_weights(path)
    np.testing.assert_array_equal(other(images(16)), network(images(16)))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_network_is_saved_as_a_layer(lively, tmp_path, ending):
    inputs = keras.Input([16, 16, 3])
    network = sact_tf.imagenet_resnet(
        "1_2_1_1", "sact", 5, base_channels=2, epsilon=0.05
    )
    outputs = keras.layers.Dense(2)(network(keras.layers.Rescaling(0.5)(inputs)))
    model = keras.Model(inputs, outputs)
    lively(model)
    names = [variable.name for variable in model.variables]
    assert len(set(names)) == len(names)
    path = str(tmp_path / f"model.{ending}")
    model.save(path)
    loaded = keras.models.load_model(path)
    x = images(16)
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.layers[2].get_config()["epsilon"] == 0.05
    assert loaded.layers[2].blocks[1].rule == CumulativeHalting(0.05)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_networks_keep_their_policy(tmp_path, policy):
    previous = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        network = sact_tf.cifar_resnet("2", "sact", base_channels=4)
    finally:
        keras.mixed_precision.set_global_policy(previous)
    assert keras.mixed_precision.global_policy().name == previous.name
    path = str(tmp_path / "network.keras")
    network.save(path)
    copies = {
        "loaded": keras.models.load_model(path),
        "execution": network.with_execution("perforated").with_execution("masked"),
        "clone": keras.models.clone_model(network),
    }
    copies["clone"].set_weights(network.get_weights())
    for what, copy in copies.items():
        assert copy.dtype_policy.name == policy, what
        dtypes = [
            [
                layer.dtype_policy.name
                for layer in m.submodules
                if isinstance(layer, keras.layers.Layer)
            ]
            for m in (copy, network)
        ]
        assert sorted(dtypes[0]) == sorted(dtypes[1]), what
        np.testing.assert_array_equal(copy(images(16)), network(images(16)), what)


def test_a_block_under_a_policy_of_its_own(tmp_path):
    inputs = keras.Input([None, None, 4])
    policy = dict(dtype="mixed_bfloat16")
    units = [BottleneckUnit(4, 2, 1, relu_batch_norm, **policy) for _ in range(3)]
    block = SACTBlock(units, **policy)
    model = keras.Model(inputs, block(inputs))
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.models.load_model(path)
    heads = loaded.layers[1].heads
    assert [h.local_conv.dtype_policy.name for h in heads] == ["mixed_bfloat16"] * 2
    x = tf.random.stateless_normal([2, 5, 5, 4], [1, 2])
    np.testing.assert_array_equal(
        tf.cast(loaded(x), tf.float32), tf.cast(model(x), tf.float32)
    )


EXECUTIONS = [
    (m, e)
    for m in ("vanilla", "act", "act_early_stopping", "sact")
    for e in ("masked", "perforated")
] + [("sact", "tiled")]


@pytest.mark.parametrize("build", ["cifar", "imagenet"])
@pytest.mark.parametrize("model_type, execution", EXECUTIONS)
def test_an_empty_batch_gives_empty_results(build, model_type, execution):
    options = dict(execution=execution, tile_size=2 if execution == "tiled" else 1)
    if build == "cifar":
        network = sact_tf.cifar_resnet("2", model_type, 3, 4, **options)
    else:
        network = sact_tf.imagenet_resnet("2_1_2_1", model_type, 3, 4, **options)
    run = tf.function(
        lambda x: (*network.with_end_points(x, training=False), network.losses),
        input_signature=[tf.TensorSpec([None, None, None, 3])],
    )
    empty = tf.zeros([0, 32, 32, 3])
    eager = (*network.with_end_points(empty, training=False), network.losses)
    for logits, end_points, losses in (eager, run(empty)):
        assert logits.shape == [0, 3]
        assert end_points["flops"].shape == [0]
        for block in network.block_scopes:
            assert end_points[block].shape[0] == 0
            if model_type != "vanilla":
                assert end_points[f"{block}/num_units"].shape[0] == 0
        regularization = sum(layer_losses(network))
        # No image, no ponder cost.
        np.testing.assert_allclose(tf.add_n(losses), regularization, rtol=1e-5)


def layer_losses(network):
    return [
        float(layer.losses[0])
        for layer in network.submodules
        if isinstance(layer, keras.layers.Conv2D)
    ]


@pytest.mark.parametrize("model_type", ["vanilla", "act_early_stopping", "sact"])
def test_training_on_an_empty_batch_leaves_moving_averages_alone(model_type):
    network = sact_tf.cifar_resnet("1_2_1", model_type, 3, 4)
    network.compile(keras.optimizers.SGD(0.0), network.loss_function())
    before = network.get_weights()
    logs = tf.function(network.train_step)((tf.zeros([0, 16, 16, 3]), tf.zeros([0])))
    assert np.isfinite(float(logs["loss"]))
    for variable, value in zip(network.variables, before):
        np.testing.assert_array_equal(variable, value, variable.name)


def test_units_and_flops_of_a_network_that_is_a_layer():
    network = sact_tf.cifar_resnet("2_1_1", "sact", 3, 4, tau=0.1)
    inputs = keras.Input([16, 16, 3])
    model = keras.Model(inputs, network(keras.layers.Rescaling(1.0)(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
    network.compile(keras.optimizers.SGD(0.0), loss, metrics=["accuracy"])
    x, y = np.array(images(16)), np.array([0, 2])
    network.evaluate(x, y, verbose=0)
    expected = network.evaluate(x, y, verbose=0, return_dict=True)
    assert {"flops", "block_1/units"} <= set(expected)

    plain = model.evaluate(x, y, verbose=0, return_dict=True)
    assert not set(plain) & {"flops", "block_1/units"}
    report = sact_tf.AdaptivityMetrics(network)
    evaluated = model.evaluate(x, y, verbose=0, return_dict=True, callbacks=[report])
    assert evaluated == pytest.approx(expected, rel=1e-6)
    history = model.fit(
        x, y, epochs=2, validation_data=(x, y), callbacks=[report], verbose=0
    ).history
    assert len(history["flops"]) == 2 and history["flops"][0] > 0.5 * expected["flops"]
    expected = network.evaluate(x, y, verbose=0, return_dict=True)
    assert history["val_flops"][1] == expected["flops"]
    assert history["val_block_1/units"][1] == expected["block_1/units"]
    # And it costs nothing when nobody asks.
    assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == set(plain)
