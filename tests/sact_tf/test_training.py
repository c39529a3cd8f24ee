"""Resuming, and runs that go wrong."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import training
from sact_tf.data.examples import Examples


@dataclasses.dataclass(frozen=True)
class Fixed(Examples):
    """Examples in a fixed order without augmentation, which fail after some batches."""

    batches: int = 1000
    bad_batch: int | None = None

    def training_batches(self, batch_size, seed=None, **options):
        def generate():
            for k in range(self.batches):
                images = self.images[:batch_size].astype(np.float32) / 255
                if k == self.bad_batch:
                    images[0] = np.nan
                yield images, self.labels[:batch_size]
            raise RuntimeError("killed")

        return tf.data.Dataset.from_generator(
            generate,
            output_signature=(
                tf.TensorSpec([batch_size, 16, 16, 3]),
                tf.TensorSpec([batch_size], tf.int64),
            ),
        )


def network(**options):
    return sact_tf.cifar_resnet(
        "2", "sact", num_classes=3, base_channels=4, tau=0.1, **options
    )


@pytest.fixture
def start(tmp_path):
    """A checkpoint all runs of a test start from."""
    return sact_tf.save_slim_checkpoint(
        network(), str(tmp_path / "start" / "model.ckpt-0")
    )


def run(start, log_dir, examples, steps=6, **options):
    model = network()
    sact_tf.load_slim_checkpoint(model, start)
    last = training.train(
        model,
        examples,
        str(log_dir),
        steps,
        batch_size=8,
        verbose=0,
        **{"save_interval_secs": 0, **options},
    )
    return model, last


def fixed(examples, **options):
    return Fixed(examples.images, examples.labels, examples.num_classes, **options)


def test_killed_run_goes_on_as_if_unbroken(start, tmp_path, tiny_examples):
    unbroken, _ = run(start, tmp_path / "a", fixed(tiny_examples))
    with pytest.raises(Exception, match="killed"):
        run(start, tmp_path / "b", fixed(tiny_examples, batches=4))
    assert sact_tf.checkpoint_step(tmp_path / "b") in (3, 4)
    resumed, last = run(start, tmp_path / "b", fixed(tiny_examples))
    assert last.endswith("model.ckpt-6")
    for a, b in zip(unbroken.variables, resumed.variables):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    # A finished run is left as it is.
    _, last = run(start, tmp_path / "b", fixed(tiny_examples, batches=0))
    assert last.endswith("model.ckpt-6")


def test_checkpoints_hold_accumulators(start, tmp_path, tiny_examples):
    _, last = run(start, tmp_path / "log", fixed(tiny_examples), steps=2)
    names = {name for name, _ in tf.train.list_variables(last)}
    variables = sact_tf.slim_variables(network())
    slots = {f"{n}/Momentum" for n, v in variables.items() if v.trainable}
    assert names == set(variables) | slots | {"global_step"}


@pytest.mark.parametrize("secs", [0, 1e9])
def test_nan_stops_and_keeps_the_last_good_checkpoint(
    secs, start, tmp_path, tiny_examples
):
    log_dir = tmp_path / "log"
    run(start, log_dir, fixed(tiny_examples), steps=2)
    with pytest.raises(training.TrainingError, match="at step .*model.ckpt-"):
        run(start, log_dir, fixed(tiny_examples, bad_batch=2), save_interval_secs=secs)
    step = sact_tf.checkpoint_step(log_dir)
    assert 2 <= step <= 4
    model = network()
    sact_tf.load_slim_checkpoint(model, log_dir)
    assert all(np.isfinite(v).all() for v in model.variables)


def test_checkpoint_of_another_network(start, tmp_path, tiny_examples):
    log_dir = tmp_path / "log"
    run(start, log_dir, fixed(tiny_examples), steps=1)
    model = sact_tf.cifar_resnet("3", "vanilla", num_classes=3, base_channels=4)
    with pytest.raises(sact_tf.CheckpointMismatchError, match="unit_3"):
        training.train(model, fixed(tiny_examples), str(log_dir), 5, batch_size=8)


def test_fewer_examples_than_a_batch(tmp_path, tiny_examples):
    with pytest.raises(ValueError, match="batch_size 64 .* 20 examples"):
        training.train(network(), tiny_examples, str(tmp_path), 5, batch_size=64)


def test_summaries(start, tmp_path, tiny_examples):
    run(start, tmp_path / "log", tiny_examples, steps=2, save_summaries_secs=0)
    (events,) = (tmp_path / "log").glob("events*")
    tags, steps = set(), set()
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        tags |= {value.tag for value in event.summary.value}
        steps.add(event.step)
    assert {1, 2} <= steps
    assert {
        "Total Loss",
        "Learning Rate",
        "losses/cross_entropy",
        "losses/regularization",
        "losses/ponder_cost_times_tau",
        "block_1/ponder_cost_mean",
        "block_3/num_units_std",
        "block_3/num_units_max",
        "heatmaps/ponder_cost",
        "heatmaps/num_units",
    } <= tags


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(0.01, amsgrad=True),
        pytest.param(
            lambda: keras.optimizers.RMSprop(0.01, momentum=0.5), marks=pytest.mark.long
        ),
        pytest.param(
            lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
            marks=pytest.mark.long,
        ),
        pytest.param(lambda: keras.optimizers.Nadam(0.01), marks=pytest.mark.long),
    ],
    ids=["Adam", "RMSprop", "SGD", "Nadam"],
)
def test_any_optimizer_goes_on(start, tmp_path, tiny_examples, make):
    examples = Fixed(tiny_examples.images, tiny_examples.labels, 3)

    def run_to(steps, log_dir):
        model = network()
        sact_tf.load_slim_checkpoint(model, start)
        optimizer = make()
        training.train(
            model, examples, str(log_dir), steps, 4, optimizer=optimizer, verbose=0
        )
        return model, optimizer

    model, optimizer = run_to(4, tmp_path / "whole")
    run_to(2, tmp_path / "parts")
    resumed, other = run_to(4, tmp_path / "parts")
    for variables in ((model, resumed), (optimizer, other)):
        for one, two in zip(*(v.variables for v in variables)):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    # The network alone loads from what training wrote.
    sact_tf.load_slim_checkpoint(network(), str(tmp_path / "parts"))


def test_another_optimizer_does_not_go_on(start, tmp_path, tiny_examples):
    examples = Fixed(tiny_examples.images, tiny_examples.labels, 3)
    run(start, tmp_path / "run", examples, steps=1)
    adam = keras.optimizers.Adam()
    with pytest.raises(sact_tf.CheckpointMismatchError, match="optimizer/m"):
        training.train(
            network(), examples, str(tmp_path / "run"), 2, 4, optimizer=adam, verbose=0
        )


def test_networks_have_a_schedule_of_their_own():
    cifar = network().default_learning_rate(1000, 50000, 128)
    assert [float(cifar(step)) for step in (0, 601, 751, 901)] == pytest.approx(
        [0.1, 0.01, 0.001, 0.0001]
    )
    imagenet = sact_tf.imagenet_resnet("1_1_1_1", base_channels=2)
    rate = imagenet.default_learning_rate(None, 1000, 10)
    assert [float(rate(step)) for step in (0, 2999, 3000)] == pytest.approx(
        [0.05, 0.05, 0.005]
    )
