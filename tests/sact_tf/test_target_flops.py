"""Training towards a number of operations."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import target_flops, training


def make(model_type="sact", tau=0.1):
    return sact_tf.cifar_resnet("3", model_type, 3, base_channels=2, tau=tau)


def test_the_factor_multiplies_tau():
    model = make()
    images = tf.random.stateless_normal([2, 16, 16, 3], [1, 2])
    _, end_points = model.with_end_points(images)
    before = float(tf.add_n(model.losses))
    ponder = sum(
        np.mean(end_points[f"{block}/ponder_cost"]) for block in model.block_scopes
    )
    target = sact_tf.TargetFlops(0.5)
    target.attach(model)
    target.factor.assign(3.0)
    run = tf.function(lambda: (model(images), tf.add_n(model.losses))[1])
    np.testing.assert_allclose(run() - before, 0.1 * 2 * ponder, rtol=1e-4)
    target.factor.assign(1.0)  # in the same function
    np.testing.assert_allclose(run(), before, rtol=1e-5)
    model.steer(None)
    model(images)
    np.testing.assert_allclose(tf.add_n(model.losses), before, rtol=1e-5)


def test_the_factor_follows_the_operations():
    target = sact_tf.TargetFlops(0.5)
    target.attach(make())
    factors = []
    measured = (0.51, 0.51, 0.5, 0.6, 0.4, 0.4)
    for value in measured:
        target.measured.update_state(value)
        target._adjust()
        factors.append(float(target.factor.numpy()))
    # It depends on the error, and close to the target on past ones, too.
    assert 1 < factors[0] < factors[1] < factors[3]
    integral = target_flops._INTEGRAL
    assert factors[2] == pytest.approx(1 + 2 * integral * 0.02)
    assert factors[4] < 0 and factors[5] == factors[4]
    assert target.last == pytest.approx(np.mean(measured))


@pytest.mark.long
def test_training_keeps_its_state(tiny_examples, tmp_path):
    def train(steps, target):
        options = dict(batch_size=8, seed=0, verbose=0, target=target)
        return training.train(make(), tiny_examples, str(tmp_path), steps, **options)

    last = train(1, None)  # a checkpoint that knows of no target
    target = sact_tf.TargetFlops(0.5, every=1)
    last = train(3, target)
    reader = tf.train.load_checkpoint(last)
    state = {name: reader.get_tensor(f"optimizer/{name}") for name in target.variables}
    assert state["tau_factor"] == target.factor.numpy() != 1
    again = sact_tf.TargetFlops(0.5, every=100)
    train(4, again)
    for name, variable in again.variables.items():
        assert variable.numpy() == state[name]
    sact_tf.load_slim_checkpoint(make(), str(tmp_path))  # which passes them over
    squeezed = sact_tf.squeeze_checkpoint(str(tmp_path), str(tmp_path / "squeezed"))
    names = tf.train.load_checkpoint(squeezed).get_variable_to_shape_map()
    assert not any("tau_" in name for name in names)


def test_operations_of_inference_are_steered(tiny_examples):
    """Moving averages that differ from the batch's moments change what halts."""
    model = make()
    images, _ = next(iter(tiny_examples.evaluation_batches(4)))
    target = sact_tf.TargetFlops(0.5, images=images)
    target.attach(model)
    target.observe(model.with_end_points(images, training=True)[1], images)
    _, end_points = model.with_end_points(images, training=False)
    target._adjust()
    expected = np.mean(end_points["flops"] / model.dense_flops(images))
    assert target.last == pytest.approx(float(expected))
    # Replicas of a strategy observe their own training steps.
    assert sact_tf.TargetFlops(0.5).images is None


def test_what_is_logged(tiny_examples):
    model = make()
    target = sact_tf.TargetFlops(0.5)
    model.compile(keras.optimizers.SGD(0.0), model.loss_function())
    batches = tiny_examples.training_batches(8, seed=0)
    history = model.fit(
        batches, steps_per_epoch=2, verbose=0, callbacks=[target]
    ).history
    ordinary = make("vanilla").dense_flops(tf.zeros([1, 16, 16, 3]))
    np.testing.assert_allclose(
        history["relative_flops"][-1], history["flops"][-1] / int(ordinary[0]), 1e-6
    )
    assert history["tau_factor"] == [1.0]


@pytest.mark.parametrize("relative", [0, -0.1, 1.1, float("nan"), "0.6"])
def test_targets_that_are_none(relative):
    with pytest.raises(ValueError, match="^relative must be"):
        sact_tf.TargetFlops(relative)


def test_networks_that_cannot_be_steered(tiny_examples):
    for model in (make("vanilla"), make(tau=0.0), make(tau=1.0)):
        with pytest.raises(ValueError, match="adaptive network with tau in"):
            sact_tf.TargetFlops(0.5).attach(model)
    with pytest.raises(ValueError, match="needs a network of this package.*Sequential"):
        sact_tf.TargetFlops(0.5).attach(keras.Sequential([make()]))
    model = make()
    target = sact_tf.TargetFlops(0.1)
    target.attach(model)
    images = tf.zeros([2, 16, 16, 3])
    target.observe({"flops": model.dense_flops(images)}, images)
    with pytest.raises(ValueError, match=r"relative=0.1 cannot be reached: .* 0\.3"):
        target._adjust()
