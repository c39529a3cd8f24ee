"""REINFORCE's term of the loss, its baselines, and that training takes them."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import latent_losses, training
from sact_tf.halting.probabilistic import ProbabilisticHalting

LOGITS = (-1.0, 0.0, 0.5, -0.3)
REWARDS = np.array([0.0, 1.0, 0.5, 2.0, -1.0])
TAU = 0.1


def chances(logits):
    """q(z) of five steps."""
    h = 1 / (1 + np.exp(-np.asarray(logits)))
    return np.append(h, 1) * np.append(1, np.cumprod(1 - h))


def enumerated_gradient():
    """Of E_q[reward - tau z] with respect to the logits, by differences."""
    values = REWARDS - TAU * np.arange(1, 6)
    step = 1e-6
    return [
        (chances(LOGITS + e) - chances(LOGITS - e)) @ values / (2 * step)
        for e in step * np.eye(4)
    ]


def test_the_enumerated_gradient_is_that_of_the_specification():
    np.testing.assert_allclose(
        enumerated_gradient(), (-0.104, 0.136, 0.033, 0.105), atol=6e-4
    )


def sampled(logits, count, seed):
    """Runs the discrete rule on `count` samples; returns z and log q(z)."""
    rule = ProbabilisticHalting("discrete", estimator="reinforce")
    state = rule.initial([count])
    for k, score in enumerate([*tf.unstack(logits), None]):
        score = None if score is None else tf.fill([count], score)
        _, state = rule.step(state, score, score is None, training=True, seed=[seed, k])
    return state.num_units.numpy(), state.log_prob


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_reinforce_is_the_enumerated_gradient(baseline):
    """Each sample weighed by how often it should come, rather than does: no noise."""
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        z, log_prob = sampled(logits, 400, seed=1)
        reward = (REWARDS[z - 1] - TAU * z).astype(np.float32)
        first = [int(np.argmax(z == value)) for value in range(1, 6)]
        assert (z[first] == np.arange(1, 6)).all()
        terms = [
            chances(LOGITS)[k]
            * latent_losses.score_function_term(
                log_prob[n : n + 1], reward[n : n + 1], baseline
            )
            for k, n in enumerate(first)
        ]
        loss = tf.add_n([tf.cast(term, tf.float32) for term in terms])
    assert float(loss) == 0
    gradient = -tape.gradient(loss, logits).numpy()
    np.testing.assert_allclose(gradient, enumerated_gradient(), atol=1e-5)


def test_reinforce_of_samples_is_right_on_average():
    logits, count = tf.Variable(LOGITS), 200_000
    with tf.GradientTape() as tape:
        z, log_prob = sampled(logits, count, seed=2)
        reward = (REWARDS[z - 1] - TAU * z).astype(np.float32)
        term = latent_losses.score_function_term(log_prob, reward, 0.5)
    gradient = -tape.gradient(term, logits).numpy()
    np.testing.assert_allclose(gradient, enumerated_gradient(), atol=0.012)
    np.testing.assert_allclose(
        np.bincount(z, minlength=6)[1:] / count, chances(LOGITS), atol=0.006
    )


@pytest.mark.parametrize("entropy_bonus", [False, True])
def test_ascent_finds_the_maximum_but_not_with_an_entropy(entropy_bonus):
    """q becomes sure of argmax f(z) - tau z; a bonus for entropy keeps it unsure."""
    logits = np.zeros(4)
    values = REWARDS - TAU * np.arange(1, 6)
    step = 1e-4
    for _ in range(1500):
        q = chances(logits)
        gains = values - np.log(np.maximum(q, 1e-300)) if entropy_bonus else values
        jacobian = [
            (chances(logits + e) - chances(logits - e)) / (2 * step)
            for e in step * np.eye(4)
        ]
        logits = logits + 2.0 * np.array(jacobian) @ gains
    q = chances(logits)
    if entropy_bonus:
        np.testing.assert_allclose(q, np.exp(values) / np.exp(values).sum(), atol=0.01)
    else:
        assert q.argmax() == values.argmax() and q.max() > 0.98


def test_an_average_baseline_follows_the_rewards():
    baseline = latent_losses.RewardBaseline()
    images = tf.zeros([2, 8, 8, 3])
    first = baseline(images, tf.constant([1.0, 3.0]))
    np.testing.assert_allclose(first, [2, 2])
    second = baseline(images, tf.constant([6.0, 6.0]))
    np.testing.assert_allclose(second, [2, 2], rtol=1e-6)
    third = baseline(images, tf.constant([0.0, 0.0]))
    np.testing.assert_allclose(third, [(2 * 0.99 + 6) / 1.99] * 2, rtol=1e-5)
    assert all(name.startswith("optimizer/baseline/") for name in baseline.variables())


def test_a_linear_baseline_learns_what_images_tell():
    linear, average = (latent_losses.RewardBaseline(linear) for linear in (True, False))

    @tf.function
    def errors(seed):
        images = 5 * tf.random.stateless_normal([64, 8, 8, 3], [1, seed])
        small = tf.image.resize(images, [4, 4])
        reward = 3 + small[:, 1, 2, 0] - small[:, 3, 3, 1]
        return [
            tf.reduce_mean(tf.square(baseline(images, reward) - reward))
            for baseline in (linear, average)
        ]

    seen = [errors(seed) for seed in tf.range(400)]
    with_image, without = np.mean(seen[-50:], 0)
    assert with_image < 0.1 * without


def tiny(**options):
    return sact_tf.cifar_resnet(
        "2_1_1", "pact", num_classes=3, base_channels=2, tau=0.5, **options
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    images = rng.normal(size=[8, 8, 8, 3]).astype(np.float32)
    return tf.constant(images), tf.constant(rng.integers(0, 3, [8]))


def head_gradients(model, batch, with_term=True):
    """Gradients of the training loss for the first head's bias."""
    images, labels = batch
    bias = model.blocks[0].heads[0].local_conv.bias
    with tf.GradientTape() as tape:
        logits, end_points = model.with_end_points(images, training=True, seed=[3, 4])
        if with_term:
            loss = model._training_loss(images, labels, logits, end_points, None)
        else:
            loss = model.compute_loss(images, labels, logits)
    return tape.gradient(loss, bias), loss, end_points, logits


def test_the_training_step_takes_log_prob_and_reward(batch):
    """The head's gradient is -(R - b) times that of log q, and nothing else."""
    model = tiny(estimator="reinforce")
    model.compile("sgd", model.loss_function())
    images, labels = batch
    gradient, loss, end_points, logits = head_gradients(model, batch)
    plain, value, _, _ = head_gradients(model, batch, with_term=False)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    assert plain is None or not np.any(plain)  # sampled steps have no gradient
    losses = latent_losses.per_example_losses(model.loss, labels, logits).numpy()
    z = end_points["block_1/ponder_cost"].numpy().mean((1, 2))
    reward = -losses - 0.5 * (z + 1 + 1)
    units = end_points["block_1/num_units"].numpy()
    h = tf.sigmoid(end_points["block_1/unit_1/halting_proba"][..., 0]).numpy()
    scores = ((units == 1) - h).sum((1, 2))  # d log q / d bias
    np.testing.assert_allclose(
        gradient, [-np.mean((reward - reward.mean()) * scores)], rtol=1e-3
    )


def test_the_relaxation_has_gradients_without_any_term(batch):
    model = tiny()
    model.compile("sgd", model.loss_function())
    gradient, *_ = head_gradients(model, batch)
    assert np.any(gradient) and model.training_state() == {}


def test_baselines_are_resumed_and_not_exported(tmp_path, tiny_examples):
    log_dir = str(tmp_path / "run")
    model = tiny(estimator="reinforce", baseline="linear")
    last = training.train(model, tiny_examples, log_dir, 2, 8, verbose=0)
    state = {name: v.numpy() for name, v in model.training_state().items()}
    assert state["optimizer/baseline/weight"] > 0
    for name, value in state.items():
        np.testing.assert_array_equal(tf.train.load_variable(last, name), value)
    other = tiny(estimator="reinforce", baseline="linear")
    other.compile(keras.optimizers.SGD(0.1, 0.9), other.loss_function())
    assert training.TrainingState(other, log_dir).restore()
    for name, variable in other.training_state().items():
        np.testing.assert_array_equal(variable, state[name])
    sact_tf.load_slim_checkpoint(tiny(), last)  # relaxed, which knows no baseline


def test_strings_name_losses_too():
    labels, logits = tf.constant([1, 0]), tf.constant([[0.2, 0.8], [0.5, 0.5]])
    for loss in (
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
    ):
        np.testing.assert_allclose(
            latent_losses.per_example_losses(loss, labels, logits),
            [-np.log(0.8), -np.log(0.5)],
            rtol=1e-5,
        )
