"""PonderNet: its divergence and losses, in an image network and a recurrent one."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import latent_losses
from sact_tf.halting import CumulativeHalting
from sact_tf.halting.pondernet import PonderNetHalting
from sact_tf.halting.probabilistic import ProbabilisticHalting
from sact_tf.networks import adaptive_rnn
from sact_tf.networks.adaptive_rnn import AdaptiveRNN


def run(rule, logits, training=True, seed=(1, 2)):
    logits = [tf.convert_to_tensor(score, tf.float32) for score in logits]
    state, weights = rule.initial(logits[0].shape), []
    for k, score in enumerate([*logits, None]):
        weight, state = rule.step(
            state, score, score is None, training=training, seed=[seed[0], seed[1] + k]
        )
        weights.append(weight.numpy())
    return np.stack(weights), state


def test_steps_are_a_distribution_and_the_divergence_is_the_papers():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=[4, 7])
    rule = PonderNetHalting(beta=0.3, lambda_p=0.2)
    p, state = run(rule, logits)
    lambdas = np.vstack([1 / (1 + np.exp(-logits)), np.ones([1, 7])])
    before = np.vstack([np.ones([1, 7]), np.cumprod(1 - lambdas, 0)[:-1]])
    np.testing.assert_allclose(p, lambdas * before, rtol=1e-5)
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(state.cost, np.arange(1, 6) @ p, rtol=1e-5)
    prior = np.array([0.2, 0.2 * 0.8, 0.2 * 0.64, 0.2 * 0.512, 0.8**4])
    np.testing.assert_allclose(prior.sum(), 1)
    divergence = (p * np.log(p / prior[:, np.newaxis])).sum(0)
    np.testing.assert_allclose(rule.loss(state), 0.3 * divergence, rtol=1e-4)
    log_prob = rule.log_prob(state, True)
    np.testing.assert_allclose(np.exp(log_prob).T, p, rtol=1e-5)


def test_the_priors_own_probability_costs_nothing():
    logit = math.log(0.2 / 0.8)
    _, state = run(PonderNetHalting(), np.full([9, 1], logit))
    np.testing.assert_allclose(state.divergence, [0], atol=1e-6)


def test_certain_steps_have_finite_divergences():
    logits = np.array([[-200.0], [200.0], [0.0]])
    p, state = run(PonderNetHalting(), logits)
    np.testing.assert_allclose(p[:, 0], [0, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(state.divergence, [-math.log(0.2 * 0.8)], rtol=1e-5)


def test_answers_that_do_not_depend_on_the_step_have_no_gradient():
    logits = tf.Variable([[0.3], [-1.0], [0.5]])
    rule = PonderNetHalting(beta=0.0)
    with tf.GradientTape() as tape:
        state = rule.initial([1])
        for k, score in enumerate([*tf.unstack(logits), None]):
            _, state = rule.step(state, score, k == 3, training=True)
        states = tf.ones([4, 1, 2])
        labels, answers, weights = latent_losses.averaged_over_units(
            states, rule.log_prob(state, True), lambda x: x, tf.constant([1])
        )
        loss = tf.reduce_mean(
            weights
            * keras.losses.sparse_categorical_crossentropy(
                labels, answers, from_logits=True
            )
        )
        loss += tf.reduce_sum(rule.loss(state))
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, logits), 0, atol=1e-6)


def test_in_inference_it_stops_as_pact_does():
    logits = tf.random.stateless_normal([4, 500], [3, 4])
    for mode in ("discrete", "thresholded"):
        of_ponder = run(PonderNetHalting(test_mode=mode), logits, training=False)
        of_pact = run(ProbabilisticHalting(test_mode=mode), logits, training=False)
        np.testing.assert_array_equal(of_ponder[0], of_pact[0])
        np.testing.assert_array_equal(of_ponder[1].log_prob, of_pact[1].log_prob)


def test_certain_gates_stop_where_act_stops():
    gates = np.random.default_rng(1).integers(0, 2, [4, 60])
    act, (state, expected) = CumulativeHalting(), ([], [])
    state = act.initial([60])
    for k, score in enumerate([*tf.constant(gates, tf.float32), None]):
        weight, state = act.step(state, score, k == 4)
        expected.append(weight)
    for rule in (PonderNetHalting(), ProbabilisticHalting(test_mode="discrete")):
        weights, other = run(rule, 60.0 * gates - 30, training=False)
        np.testing.assert_array_equal(other.num_units, state.num_units)
        np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beta": -1.0}, "beta must be a finite number >= 0; got -1"),
        ({"lambda_p": 0.0}, "lambda_p must lie between 0 and 1; got 0"),
        ({"lambda_p": math.nan}, "lambda_p must be a finite number from 0 to 1"),
        ({"test_mode": "relaxed"}, "test_mode must be one of discrete, thresholded"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PonderNetHalting(**options)


def test_an_image_network_averages_the_losses_of_its_last_blocks_units():
    """tau has no effect, and only the last block halts."""
    model = sact_tf.cifar_resnet(
        "1_1_3", "pondernet", num_classes=3, base_channels=2, tau=7.0, beta=0.5
    )
    assert [block.is_adaptive for block in model.blocks] == [False, False, True]
    model.compile(keras.optimizers.SGD(0.0), model.loss_function(), run_eagerly=True)
    x = tf.random.stateless_normal([6, 8, 8, 3], [1, 2])
    y = tf.constant([0, 1, 2, 0, 1, 2])
    logits, end_points = model.with_end_points(x, training=True)
    loss = model._training_loss(x, y, logits, end_points, None)
    states, p = end_points["block_3/states"], end_points["block_3/halting_distribution"]
    assert states.shape[0] == 3
    flat = tf.reshape(states, [-1, *states.shape[2:]])
    each = tf.reshape(model._classify(flat, True)[0], [3, 6, 3])
    losses = tf.stack(
        [tf.nn.sparse_softmax_cross_entropy_with_logits(y, each[n]) for n in range(3)],
        1,
    )
    expected = tf.reduce_mean(tf.reduce_sum(p * losses, 1)) + tf.add_n(model.losses)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    decay = sum(
        0.5 * 2e-4 * float(tf.reduce_sum(tf.square(v)))
        for v in model.trainable_variables
        if "kernel" in v.name
    )
    log_prob = end_points["block_3/log_prob"].numpy()
    prior = np.log([0.2, 0.16, 0.64])
    divergence = (np.exp(log_prob) * (log_prob - prior)).sum(1).mean()
    np.testing.assert_allclose(
        tf.add_n(model.losses), decay + 0.5 * divergence, rtol=1e-3
    )
    logs = model.train_on_batch(x, y, return_dict=True)
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-4)
    hard = model.with_end_points(x, training=False, seed=[1, 2])[1]
    assert set(np.unique(hard["block_3/num_units"])) <= {1, 2, 3}
    assert hard["block_3/log_prob"].shape == [6]


# Recurrent networks.


def recurrent(model_type, **options):
    options = {"max_steps": 4, "halting_bias": 0.0, **options}
    return AdaptiveRNN(
        keras.layers.SimpleRNNCell(5), model_type=model_type, outputs=2, **options
    )


def sequences(batch=3, time=2, features=4):
    return tf.random.stateless_normal([batch, time, features], [1, 2])


def reference(model, x, weights_of):
    """Runs time steps and updates one by one; returns outputs."""
    kernel, recurrent_kernel, bias = (w.numpy() for w in model.cell.weights)
    state, outputs = np.zeros([len(x), 5]), []
    for t in range(x.shape[1]):
        total, inner = 0.0, state
        for n in range(4):
            flag = np.full([len(x), 1], float(n == 0))
            inputs = np.concatenate([flag, x[:, t]], 1)
            inner = np.tanh(inputs @ kernel + inner @ recurrent_kernel + bias)
            total = total + weights_of(t, n)[:, np.newaxis] * inner
        state = total
        outputs.append(state @ model.readout.kernel.numpy() + model.readout.bias)
    return np.stack(outputs, 1)


def test_a_constant_number_of_updates():
    model = recurrent("vanilla")
    x = sequences()
    outputs, end_points = model(x, return_end_points=True)
    expected = reference(model, x.numpy(), lambda t, n: np.full(3, float(n == 3)))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    np.testing.assert_array_equal(end_points["num_units"], 4)
    assert model.losses == []


def test_act_weighs_updates_and_charges_them():
    model = recurrent("act", tau=0.5)
    x = sequences()
    model(x)
    model.head.kernel.assign(3.0 * tf.ones_like(model.head.kernel))
    outputs, end_points = model(x, return_end_points=True)
    kernel, recurrent_kernel, bias = (w.numpy() for w in model.cell.weights)
    state, cost = np.zeros([3, 5]), 0.0
    for t in range(2):
        halting, total = CumulativeHalting().initial([3]), 0.0
        inner = state
        for n in range(4):
            flag = np.full([3, 1], float(n == 0))
            inputs = np.concatenate([flag, x[:, t]], 1)
            inner = np.tanh(inputs @ kernel + inner @ recurrent_kernel + bias)
            score = 1 / (1 + np.exp(-3 * inner.sum(1)))
            weight, halting = CumulativeHalting().step(
                halting, tf.constant(score, tf.float32), n == 3
            )
            total = total + weight.numpy()[:, np.newaxis] * inner
        state = total
        np.testing.assert_array_equal(end_points["num_units"][:, t], halting.num_units)
        cost += halting.ponder_cost.numpy().mean() / 2
        answer = state @ model.readout.kernel.numpy() + model.readout.bias
        np.testing.assert_allclose(outputs[:, t], answer, atol=1e-4)
    np.testing.assert_allclose(model.losses, [0.5 * cost], rtol=1e-4)


@pytest.mark.parametrize("max_steps, units", [(2, 2), (5, 5), (9, 7)])
def test_updates_beyond_the_unrolled_ones(max_steps, units, monkeypatch):
    """Late steps run in a loop, which ends when everything has stopped."""
    monkeypatch.setattr(adaptive_rnn, "_UNROLLED", 2)
    model = recurrent("act", max_steps=max_steps, halting_bias=math.log(0.15 / 0.85))
    x = sequences(time=1)
    model(x)
    model.head.kernel.assign(tf.zeros_like(model.head.kernel))  # always 0.15
    outputs, end_points = model(x, return_end_points=True)
    np.testing.assert_array_equal(end_points["num_units"], units)
    np.testing.assert_allclose(
        end_points["ponder_cost"], units + 1 - 0.15 * (units - 1), rtol=1e-4
    )
    monkeypatch.setattr(adaptive_rnn, "_UNROLLED", 20)
    np.testing.assert_allclose(model(x), outputs, atol=1e-5)


def test_a_loop_of_updates_is_differentiable(monkeypatch):
    monkeypatch.setattr(adaptive_rnn, "_UNROLLED", 1)
    model = recurrent("act", halting_bias=-1.5)

    @tf.function
    def gradients(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x))) + tf.add_n(model.losses)
        return tape.gradient(loss, model.trainable_variables)

    assert all(np.isfinite(g).all() and np.any(g) for g in gradients(sequences(time=1)))


@pytest.mark.parametrize(
    "model_type, options",
    [
        ("pact_image", {}),
        ("pact_image", {"estimator": "reinforce"}),
        ("pondernet", {}),
        ("act", {}),
    ],
)
def test_every_rule_trains_heads(model_type, options):
    model = recurrent(model_type, **options)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.BinaryCrossentropy(True),
        run_eagerly=True,
    )
    x, y = sequences(8), tf.constant(np.arange(32).reshape(8, 2, 2) % 2, tf.float32)
    model(x)
    before = model.head.get_weights()
    for _ in range(2):  # the first rewards have no baseline to differ from
        logs = model.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(logs["loss"])
    assert all(np.any(a != b) for a, b in zip(before, model.head.get_weights()))
    copy = AdaptiveRNN.from_config(model.get_config())
    assert copy.rule == model.rule and copy.max_steps == 4


def test_bad_recurrent_networks_are_named():
    with pytest.raises(ValueError, match="model_type must be one that halts images"):
        recurrent("sact")
    with pytest.raises(ValueError, match="max_steps must be an integer >= 1"):
        recurrent("act", max_steps=0)
    with pytest.raises(ValueError, match="tau must be a finite number >= 0"):
        recurrent("act", tau=-1.0)
