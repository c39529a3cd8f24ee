"""Halting rules, units and heads of a user's own, as docs/extending.md shows them."""

import functools
import pathlib
import re
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import AdaptiveBlock, halting, training
from sact_tf.halting import CumulativeHalting, HaltingHead, HaltingRule

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "extending.md"


@functools.cache
def page():
    """What the page's Python blocks define."""
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        exec(compile(code, PAGE.name, "exec"), names)
    return names


def images(batch=2, side=12):
    return tf.random.stateless_normal([batch, side, side, 3], [1, 2])


@pytest.fixture
def own_network(lively):
    """Returns a function that makes networks of the page's halting rule."""

    def make(**options):
        page()
        options = {"base_channels": 4, "threshold": 0.45, **options}
        return lively(sact_tf.cifar_resnet("3", "threshold", **options))

    return make


def test_a_rule_registers_itself(own_network):
    network = own_network()
    assert "threshold" in halting.model_types()
    assert network.get_config()["threshold"] == 0.45
    assert network.blocks[0].rule == page()["Threshold"](0.45)
    with pytest.raises(ValueError, match="thresold"):
        sact_tf.cifar_resnet("2", "threshold", thresold=0.3)
    with pytest.raises(ValueError, match="epsilon: model_type 'vanilla' has no"):
        sact_tf.cifar_resnet("2", "vanilla", epsilon=0.1)


def test_a_rule_of_ones_own_step_by_step(own_network):
    """A position's output is that of the first unit whose score is above."""
    network = own_network()
    logits, end_points = network.with_end_points(images(), training=False)
    scores = [
        end_points[f"block_1/unit_{k}/halting_proba"][..., 0].numpy() for k in (1, 2)
    ]
    first, second = (score > 0.45 for score in scores)
    expected = np.where(first, 1, np.where(second, 2, 3))
    np.testing.assert_array_equal(end_points["block_1/num_units"], expected)
    assert len(np.unique(expected)) == 3
    weights = end_points["block_1/halting_distribution"].numpy()
    np.testing.assert_array_equal(weights.argmax(-1) + 1, expected)
    cost = expected + (1 - scores[0]) + np.where(first, 0, 1 - scores[1])
    np.testing.assert_allclose(end_points["block_1/ponder_cost"], cost, rtol=1e-5)


@pytest.mark.parametrize("execution, tile_size", [("perforated", 1), ("tiled", 3)])
def test_a_rule_of_ones_own_runs_every_way(own_network, execution, tile_size):
    masked = own_network(tile_size=tile_size)
    other = masked.with_execution(execution)
    expected, end_points = masked.with_end_points(images(), training=False)
    logits, others = other.with_end_points(images(), training=False)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_array_equal(others["flops"], end_points["flops"])
    full = sact_tf.cifar_resnet("3", base_channels=4)
    most = int(full.with_end_points(images())[1]["flops"][0])
    assert int(end_points["flops"][0]) < most


def test_a_rule_of_ones_own_is_saved_and_trained(own_network, tmp_path, tiny_examples):
    network = own_network(num_classes=3, tau=0.1)
    path = str(tmp_path / "network.keras")
    network.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded(images()), network(images()))
    before = network.get_weights()
    log_dir = str(tmp_path / "run")
    last = training.train(network, tiny_examples, log_dir, 2, 8, verbose=0)
    assert sact_tf.checkpoint_step(last) == 2
    changed = [
        np.abs(a - b).max() > 0
        for a, b, v in zip(before, network.get_weights(), network.variables)
        if "local_conv" in v.name
    ]
    assert all(changed)  # the cost has gradients


class Noisy(HaltingRule):
    """Stops at random, with a loss of its own; for images and positions alike."""

    is_random = True
    reads_logits = True

    def __init__(self, temperature=1.0):
        self.temperature = temperature

    def initial(self, shape, valid=None):
        return NoisyState(tf.ones(shape, tf.bool), tf.zeros(shape, tf.int32), 0.0)

    def step(self, state, score, is_last, *, training=False, seed=None):
        num_units = state.num_units + tf.cast(state.active, tf.int32)
        stops = state.active
        drawn = state.drawn
        if not is_last:
            noise = tf.random.stateless_uniform(tf.shape(score), seed)
            stops &= tf.sigmoid(score / self.temperature) > noise
            drawn += noise
        return tf.cast(stops, tf.float32), NoisyState(
            state.active & ~stops, num_units, drawn
        )

    def cost(self, state):
        return tf.cast(state.num_units, tf.float32)

    def loss(self, state):
        return state.drawn


class NoisyState(NamedTuple):
    active: tf.Tensor
    num_units: tf.Tensor
    drawn: tf.Tensor


@pytest.mark.parametrize("domain", ["image", "position"])
def test_seeds_differ_between_units_and_a_loss_is_added(domain):
    unit = page()["SharedUnit"]
    block = AdaptiveBlock([unit(3, 4) for _ in range(4)], Noisy(1e3), domain, tau=0.5)
    x = images(batch=5)
    _, one = block(x, return_end_points=True, seed=[3, 4])
    losses = [float(loss) for loss in block.losses]
    _, same = block(x, return_end_points=True, seed=[3, 4])
    _, other = block(x, return_end_points=True, seed=[3, 5])
    units = [end_points["num_units"].numpy() for end_points in (one, same, other)]
    np.testing.assert_array_equal(units[0], units[1])
    assert (units[0] != units[2]).any() and len(np.unique(units[0])) > 1
    np.testing.assert_allclose(losses[0], 0.5 * units[0].mean(), rtol=1e-6)
    shape = one["num_units"].shape
    seeds = [tf.random.experimental.stateless_fold_in([3, 4], k) for k in range(3)]
    drawn = sum(tf.random.stateless_uniform(shape, seed) for seed in seeds)
    np.testing.assert_allclose(losses[1], np.mean(drawn), rtol=1e-5)
    _, unseeded = block(x, return_end_points=True)  # which draws a seed
    assert unseeded["num_units"].shape == shape


def shared_block(**options):
    unit = page()["SharedUnit"](3, steps=5)
    block = AdaptiveBlock(
        [unit] * 5, CumulativeHalting(), "position", batch_norm=None, **options
    )
    block(images())
    unit.scales.assign([0.5, -0.7, 0.3, 0.9, 0.4])
    head = block.heads[0]
    head.local_conv.kernel.assign(
        tf.random.stateless_normal(head.local_conv.kernel.shape, [1, 2])
    )
    head.local_conv.bias.assign([-1.0])
    return block, unit


def test_shared_weights_are_those_of_tied_copies():
    """Section 3.8, number 3, of iterative networks: gradients of copies add up."""
    block, unit = shared_block()
    assert all(other is block.heads[0] for other in block.heads)
    assert set(block.slim_scopes) == {"unit_1", "unit_1/halting_proba"}
    assert len(block.trainable_variables) == 3 + 2 + 2 + 2 + 1
    copies = AdaptiveBlock(
        [page()["SharedUnit"](3, steps=5) for _ in range(5)], CumulativeHalting()
    )
    copies(images())
    for copy in copies.units:
        copy.set_weights(unit.get_weights())
    for head in copies.heads:
        head.set_weights(block.heads[0].get_weights())
    outputs, gradients = [], []
    for layer in (block, copies):
        kernels = list({id(u): u.conv.kernel for u in layer.units}.values())
        with tf.GradientTape() as tape:
            output, end_points = layer(images(), return_end_points=True)
            loss = tf.reduce_sum(tf.square(output)) + layer.losses[0]
        outputs.append((output, end_points["num_units"], end_points["flops"]))
        gradients.append(sum(tape.gradient(loss, kernels)))
    for one, other in zip(*outputs):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-5)
    assert len(np.unique(outputs[0][1])) > 2


@pytest.mark.parametrize("execution", ["perforated", "tiled"])
def test_shared_weights_run_every_way(execution):
    tile_size = 3 if execution == "tiled" else 1
    masked, unit = shared_block(tile_size=tile_size)
    other, copy = shared_block(tile_size=tile_size, execution=execution)
    other.set_weights(masked.get_weights())
    x = images()
    np.testing.assert_allclose(
        other(x, training=False), masked(x, training=False), atol=1e-5
    )


class PoolingHead(keras.layers.Layer):
    """Scores images by the means of what later gates pool: three vectors."""

    def __init__(self, batch_norm, weight_decay, name):
        super().__init__(name=name)
        self.seen = []

    def call(self, x, residual, inputs):
        self.seen.append((x, residual, inputs))
        return tf.sigmoid(tf.reduce_mean(x + residual + inputs, [1, 2, 3]))


def test_a_head_of_ones_own_sees_output_residual_and_input():
    unit = page()["SharedUnit"]
    block = AdaptiveBlock(
        [unit(3, 3) for _ in range(3)], CumulativeHalting(), "image", head=PoolingHead
    )
    x = images()
    output, end_points = block(x, return_end_points=True)
    state, scores = x, []
    for k, (u, head) in enumerate(zip(block.units, block.heads)):
        previous, state = state, u(state, step=k)
        seen = head.seen[-1]
        np.testing.assert_allclose(seen[0], state, atol=1e-6)
        np.testing.assert_allclose(seen[1], state - previous, atol=1e-6)
        np.testing.assert_array_equal(seen[2], x)
        scores.append(end_points[f"unit_{k + 1}/halting_proba"][:, 0])
        expected = tf.sigmoid(tf.reduce_mean(state + seen[1] + x, [1, 2, 3]))
        np.testing.assert_allclose(scores[-1], expected, atol=1e-6)
    assert "flops" not in end_points  # the head does not count


@pytest.mark.parametrize("reads_logits", [False, True])
@pytest.mark.parametrize("execution", ["masked", "perforated"])
def test_imposed_units_override_scores(reads_logits, execution):
    block = sact_tf.SACTBlock(
        [page()["SharedUnit"](3, 4) for _ in range(4)], execution=execution
    )
    if reads_logits:
        block.rule = LogitHalting()
    x = images(side=6)
    own = block(x, training=False, return_end_points=True)[1]["num_units"]
    units = np.arange(36).reshape(6, 6) % 4 + 1
    for imposed in (units, lambda height, width: units[:height, :width]):
        block.impose_units(imposed)
        _, end_points = block(x, training=False, return_end_points=True)
        for image in end_points["num_units"]:
            np.testing.assert_array_equal(image, units)
    block.impose_units(None)
    _, end_points = block(x, training=False, return_end_points=True)
    np.testing.assert_array_equal(end_points["num_units"], own)
    assert (own.numpy() != units).any()


class LogitHalting(CumulativeHalting):
    """The same rule, of logits."""

    reads_logits = True

    def step(self, state, score, is_last, *, training=False, seed=None):
        score = None if score is None else tf.sigmoid(score)
        return super().step(state, score, is_last, training=training, seed=seed)


def test_heads_hand_over_scores_or_logits():
    block = sact_tf.SACTBlock([page()["SharedUnit"](3, 2) for _ in range(2)])
    x = images()
    block(x)
    head = block.heads[0]
    assert isinstance(head, HaltingHead)
    np.testing.assert_allclose(head(x), tf.sigmoid(head(x, logits=True)), atol=1e-6)


def test_rules_are_configuration():
    rule = CumulativeHalting(0.2)
    assert rule == CumulativeHalting.from_config(rule.get_config())
    assert rule != CumulativeHalting(0.1) and hash(rule) == hash(CumulativeHalting(0.2))
    assert repr(rule) == "CumulativeHalting(epsilon=0.2)"
    with pytest.raises(ValueError, match="rule must be a HaltingRule; got 'act'"):
        AdaptiveBlock([page()["MyUnit"]()], "act")
    with pytest.raises(ValueError, match="domain must be one of image, position"):
        AdaptiveBlock([page()["MyUnit"]()], rule, "group")
    with pytest.raises(ValueError, match="tile_size must be 1 with domain='image'"):
        AdaptiveBlock([page()["MyUnit"]()], rule, "image", tile_size=2)
