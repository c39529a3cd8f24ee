"""Training a detector on two devices equals training it on one."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

# Logical devices must be made before TensorFlow starts: it runs in its own process.
_SCRIPT = """
import sys
import tensorflow as tf
import tf_keras as keras
from object_detection import training
from object_detection.data import scenes
from object_detection.faster_rcnn import FasterRCNN, Options

cpu = tf.config.list_physical_devices("CPU")[0]
halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, halves)
examples = scenes.load("train", 8, image_size=48, short_side=48)
# As many samples as there are anchors and proposals: none is drawn at random.
options = Options(
    anchor_sizes=(16,), aspect_ratios=(1.0,), num_proposals=8, num_region_samples=12,
    num_anchor_samples=64, crop_size=7,
)
one = tf.distribute.OneDeviceStrategy("CPU:0")
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for name, strategy in {"one": one, "two": two}.items():
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = FasterRCNN(10, "1_1_1_1", "sact", 8, 0.1, options=options)
    rate = training.learning_rate(1000, 0.01)
    training.train(
        model, examples, f"{sys.argv[1]}/{name}", 2, 4, rate=rate, seed=1, verbose=0
    )
"""


@pytest.mark.long  # two processes' worth of tracing
def test_mirrored_training_is_that_on_one_device(tmp_path):
    subprocess.run([sys.executable, "-c", _SCRIPT, str(tmp_path)], check=True)
    one, two = (
        tf.train.load_checkpoint(str(tmp_path / name)) for name in ("one", "two")
    )
    for name in one.get_variable_to_shape_map():
        np.testing.assert_allclose(
            one.get_tensor(name), two.get_tensor(name), atol=1e-4, err_msg=name
        )
