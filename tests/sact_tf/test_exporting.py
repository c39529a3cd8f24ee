"""SavedModels in a process that has only TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import sact_tf
from sact_tf import exporting, visualization

SERVE = """
import sys
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
inputs = np.load(sys.argv[2])
outputs = {}
for name in inputs.files:
    for key, value in serve(images=tf.constant(inputs[name])).items():
        outputs[f"{name}/{key}"] = value.numpy()
assert "sact_tf" not in sys.modules and "tf_keras" not in sys.modules
np.savez(sys.argv[3], **outputs)
"""


@pytest.mark.parametrize("model_type", ["act_early_stopping", "sact"])
def test_loads_with_tensorflow_alone(model_type, tmp_path):
    model = sact_tf.cifar_resnet("2", model_type, base_channels=4)
    exporting.export_saved_model(model, tmp_path / "model")
    inputs = {
        "a": np.random.default_rng(0).normal(size=[2, 32, 32, 3]).astype(np.float32),
        "b": np.random.default_rng(1).normal(size=[1, 20, 45, 3]).astype(np.float32),
    }
    np.savez(tmp_path / "in.npz", **inputs)
    arguments = [tmp_path / "model", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run(
        [sys.executable, "-c", SERVE, *map(str, arguments)], check=True, cwd=tmp_path
    )
    outputs = np.load(tmp_path / "out.npz")
    for name, images in inputs.items():
        logits, end_points = model.with_end_points(images, training=False)
        expected = {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "flops": end_points["flops"],
        }
        if model_type == "sact":
            expected["ponder_cost_map"] = visualization.sact_map(end_points)
        assert {key for key in outputs.files if key.startswith(f"{name}/")} == {
            f"{name}/{key}" for key in expected
        }
        for key, value in expected.items():
            np.testing.assert_allclose(outputs[f"{name}/{key}"], value, atol=1e-4)
