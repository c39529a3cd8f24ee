"""Training on several devices, in lower precision, compiled, and fed by a service."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import optimization, training
from sact_tf.layers import BatchNorm, synchronize_batch_norm

# Logical devices must be made before TensorFlow starts: it runs in its own process.
_ON_TWO_DEVICES = """
import sys
import tensorflow as tf
import tf_keras as keras
import sact_tf
from sact_tf import training
from sact_tf.data import shapes
from sact_tf.layers import synchronize_batch_norm

cpu = tf.config.list_physical_devices("CPU")[0]
halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, halves)
examples = shapes.load("train", 32, 24)
rate = keras.optimizers.schedules.ExponentialDecay(0.05, 100, 0.9)
one = tf.distribute.OneDeviceStrategy("CPU:0")
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for name, strategy in {"one": one, "two": two, "apart": two}.items():
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = eval(sys.argv[2])
    synchronize_batch_norm(model, name != "apart")
    training.train(
        model, examples, f"{sys.argv[1]}/{name}", 2, 8, rate, seed=1, verbose=0
    )
try:
    training.train(model, examples, sys.argv[1], 2, batch_size=7)
except ValueError as error:
    print(error)
"""


def tensors(checkpoint):
    reader = tf.train.load_checkpoint(str(checkpoint))
    return {n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()}


def largest_difference(values, expected):
    return max(np.abs(values[name] - expected[name]).max() for name in expected)


_NETWORKS = {
    "sact": 'sact_tf.cifar_resnet("1_2_1", "sact", base_channels=4, tau=0.1)',
    "iterative": 'sact_tf.iterative_net("iterative", (1, 2, 1, 1), num_classes=10, '
    'stem="cifar", base_channels=4, tau=0.1)',
}


@pytest.mark.long
@pytest.mark.parametrize("network", _NETWORKS.values(), ids=_NETWORKS)
def test_mirrored_training_is_that_on_one_device(network, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(_ON_TWO_DEVICES))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    process = subprocess.run(
        [sys.executable, script, tmp_path, network],
        check=True,
        env=environment,
        timeout=600,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "batch_size 7 must be a multiple of the 2 replicas" in process.stdout
    one, two, apart = (tensors(tmp_path / name) for name in ("one", "two", "apart"))
    assert one["global_step"] == 2 and set(one) == set(two)
    assert largest_difference(two, one) < 1e-4
    # Replicas that normalize each with its own statistics train otherwise.
    assert largest_difference(apart, one) > 1e-2


def test_batch_norm_can_be_told_not_to_synchronize():
    model = sact_tf.cifar_resnet("1", "sact", base_channels=2)
    synchronize_batch_norm(model, False)
    layers = [m for m in model.submodules if isinstance(m, BatchNorm)]
    assert layers and not any(layer.synchronized for layer in layers)


@pytest.fixture(
    params=["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.long)]
)
def precision(request):
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.long
def test_mixed_precision_keeps_weights_and_halting_in_float32(
    precision, tiny_examples, tmp_path
):
    model = sact_tf.cifar_resnet("2", "sact", base_channels=4, tau=0.1)
    before = [weight.numpy() for weight in model.trainable_weights]
    training.train(model, tiny_examples, str(tmp_path), 3, batch_size=4, verbose=0)
    after = tensors(tmp_path)
    assert all(v.dtype == np.float32 for n, v in after.items() if n != "global_step")
    moved = [np.abs(w - b).max() for w, b in zip(model.trainable_weights, before)]
    assert np.isfinite(moved).all() and max(moved) > 0
    images, _ = next(iter(tiny_examples.evaluation_batches(4)))
    logits, end_points = model.with_end_points(images, training=True)
    assert end_points["block_1"].dtype == precision.removeprefix("mixed_")
    for key in ("ponder_cost", "halting_distribution"):
        if f"block_1/{key}" in end_points:
            assert end_points[f"block_1/{key}"].dtype == tf.float32
    assert logits.dtype == tf.float32

    keras.mixed_precision.set_global_policy("float32")
    exact = sact_tf.cifar_resnet("2", "sact", base_channels=4, tau=0.1)
    exact.set_weights(model.get_weights())
    expected, _ = exact.with_end_points(images, training=True)
    np.testing.assert_allclose(logits, expected, atol=0.3)


@pytest.mark.long
def test_compiled_training_is_the_same(tiny_examples, tmp_path):
    weights = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = sact_tf.cifar_resnet("1_2_1", "sact", base_channels=4, tau=0.1)
        training.train(
            model,
            tiny_examples,
            str(tmp_path / str(jit_compile)),
            2,
            batch_size=4,
            seed=1,
            learning_rate=optimization.imagenet_learning_rate(20, 4),
            jit_compile=jit_compile,
            verbose=0,
        )
        weights.append(model.get_weights())
    for plain, compiled in zip(*weights):
        np.testing.assert_allclose(plain, compiled, atol=1e-4)


def test_batches_come_from_a_data_service(tiny_examples):
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    address = dispatcher.target.split("://")[1]
    worker = service.WorkerServer(service.WorkerConfig(dispatcher_address=address))
    batches = tiny_examples.training_batches(4, 0, data_service=dispatcher.target)
    expected = tiny_examples.training_batches(4, 0)
    for (images, labels), (same, same_labels) in zip(batches.take(3), expected):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(labels, same_labels)
    del worker
