"""Exported networks in OpenVINO."""

import numpy as np
import pytest
import tensorflow as tf

import sact_tf
from sact_tf import exporting, visualization

openvino = pytest.importorskip("openvino", reason="needs the extra [openvino]")


@pytest.mark.parametrize(
    "kind, execution",
    [
        ("saved_model", "masked"),
        pytest.param("onnx", "masked", marks=pytest.mark.long),
        pytest.param("onnx", "perforated", marks=pytest.mark.long),
        pytest.param("saved_model", "perforated", marks=pytest.mark.long),
    ],
)
def test_outputs_are_the_networks(lively, tmp_path, kind, execution):
    if kind == "onnx":
        pytest.importorskip("tf2onnx")
    model = lively(sact_tf.cifar_resnet("2", "sact", 7, base_channels=4))
    path = str(tmp_path / ("net.onnx" if kind == "onnx" else "saved_model"))
    if kind == "onnx":
        exporting.export_onnx(model, path, execution=execution)
    else:
        model.export_saved_model(path, execution=execution)
    core = openvino.Core()
    # By default OpenVINO takes bfloat16 where the processor has it.
    network = core.compile_model(
        core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(images):
        return {
            name.partition(":")[0]: value
            for output, value in network(images).items()
            for name in output.names
        }

    images = np.random.default_rng(0).normal(size=[2, 40, 24, 3]).astype(np.float32)
    images[1] *= 5
    logits, end_points = model.with_end_points(tf.constant(images), training=False)
    found = run(images)
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        found["ponder_cost_map"], visualization.sact_map(end_points), atol=1e-4
    )
    assert len(np.unique(end_points["flops"])) == 2  # halting varies
    # Of several images, OpenVINO 2026.4 counts the first one's operations alone.
    for k in range(2):
        np.testing.assert_array_equal(
            run(images[k : k + 1])["flops"], end_points["flops"][k : k + 1]
        )
