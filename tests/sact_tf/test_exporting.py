"""SavedModels in a process that has only TensorFlow."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import custom_ops
import sact_tf
from sact_tf import exporting, visualization

SERVE = """
import sys
import numpy as np
import tensorflow as tf
inputs, implementation, *paths = sys.argv[1:]
if implementation == "native":
    import custom_ops
    custom_ops.load()
inputs = np.load(inputs)
for path in paths:
    signatures = tf.saved_model.load(path).signatures
    outputs = {}
    for name in inputs.files:
        key = "image_bytes" if name == "bytes" else "images"
        signature = "serving_bytes" if name == "bytes" else "serving_default"
        values = signatures[signature](**{key: tf.constant(inputs[name])})
        for key, value in values.items():
            outputs[f"{name}/{key}"] = value.numpy()
    np.savez(f"{path}.npz", **outputs)
assert "sact_tf" not in sys.modules and "tf_keras" not in sys.modules
assert ("custom_ops" in sys.modules) == (implementation == "native")
"""


def check_outputs(outputs, model, images):
    """Checks that outputs of an exported network are those of the network."""
    logits, end_points = model.with_end_points(images, training=False)
    probabilities = tf.nn.softmax(logits)
    expected = {
        "logits": logits,
        "probabilities": probabilities,
        "top_probabilities": np.sort(probabilities)[:, :-6:-1],
        "top_classes": np.argsort(probabilities)[:, :-6:-1],
        "flops": end_points["flops"],
    }
    for block in model.block_scopes:
        for key in ("ponder_cost", "num_units"):
            if f"{block}/{key}" in end_points:
                expected[f"{block}_{key}"] = end_points[f"{block}/{key}"]
    if visualization.has_maps(end_points):
        expected["ponder_cost_map"] = visualization.sact_map(end_points)
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(outputs[key], value, atol=1e-4)


def halting_network(model_type, execution):
    """Network whose units halt here and there, and its images of 40x24."""
    model = sact_tf.cifar_resnet(
        "2", model_type, 7, base_channels=4, execution=execution
    )
    rng = np.random.default_rng(0)
    for block in model.blocks:
        for head in getattr(block, "heads", ()):
            for conv in head.submodules:
                if hasattr(conv, "kernel"):
                    conv.kernel.assign(rng.normal(0, 9, conv.kernel.shape))
                    if conv.use_bias:
                        conv.bias.assign([3.0])
    images = rng.normal(size=[2, 40, 24, 3]).astype(np.float32)
    _, end_points = model.with_end_points(images, training=False)
    if model_type == "sact":
        units = np.concatenate(
            [np.ravel(end_points[f"{block}/num_units"]) for block in model.block_scopes]
        )
        assert set(units) == {1, 2}
    return model, images


@pytest.mark.parametrize(
    "implementation, kinds",
    [
        (
            "tensorflow",
            [("act_early_stopping", None), ("sact", None), ("sact", "perforated")],
        ),
        ("native", [("sact", "perforated")]),
    ],
)
@pytest.mark.long
def test_serves_in_another_process(tmp_path, implementation, kinds):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    models = {}
    for model_type, execution in kinds:
        model = sact_tf.cifar_resnet("2", model_type, base_channels=4)
        path = str(tmp_path / f"{model_type}_{execution}")
        model.export_saved_model(
            path, execution=execution, implementation=implementation
        )
        models[path] = model
    pixels = np.random.default_rng(2).integers(0, 256, [2, 32, 32, 3]).astype(np.uint8)
    encoded = [tf.io.encode_png(image).numpy() for image in pixels]
    inputs = {
        "a": np.random.default_rng(0).normal(size=[2, 32, 32, 3]).astype(np.float32),
        "b": np.random.default_rng(1).normal(size=[1, 20, 45, 3]).astype(np.float32),
        "bytes": np.array(encoded),
    }
    np.savez(tmp_path / "in.npz", **inputs)
    root = str(tmp_path) if implementation == "tensorflow" else None
    arguments = [str(tmp_path / "in.npz"), implementation, *models]
    subprocess.run([sys.executable, "-c", SERVE, *arguments], check=True, cwd=root)
    inputs["bytes"] = tf.image.per_image_standardization(pixels)
    for path, model in models.items():
        loaded = np.load(f"{path}.npz")
        for name, images in inputs.items():
            outputs = {
                key.removeprefix(f"{name}/"): loaded[key]
                for key in loaded.files
                if key.startswith(f"{name}/")
            }
            check_outputs(outputs, model, images)


@pytest.mark.long
def test_imagenet_bytes(tmp_path):
    model = sact_tf.imagenet_resnet("1_1_1_1", "sact", 7, base_channels=2)
    model.export_saved_model(tmp_path, image_size=64)
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_bytes"]
    pixels = np.random.default_rng(0).integers(0, 256, [80, 90, 3]).astype(np.uint8)
    encoded = tf.io.encode_jpeg(pixels, quality=95)
    image = model.preprocess(tf.io.decode_jpeg(encoded), 64)
    assert image.shape == [64, 64, 3]
    np.testing.assert_allclose(
        serve(image_bytes=encoded[None])["logits"],
        model(image[None], training=False),
        atol=1e-4,
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="image 1"):
        serve(image_bytes=tf.stack([encoded, b"no image"]))


def test_an_execution_the_network_cannot_have(tmp_path):
    model = sact_tf.cifar_resnet("1", "act", base_channels=2)
    with pytest.raises(ValueError, match="execution must be one of"):
        model.export_saved_model(tmp_path, execution="tiled")


@pytest.mark.parametrize(
    "model_type", [pytest.param("act_early_stopping", marks=pytest.mark.long), "sact"]
)
def test_tensorflow_lite(tmp_path, model_type):
    model, images = halting_network(model_type, "masked")
    path = exporting.export_tflite(model, tmp_path / "model.tflite", (40, 24), 2)
    runner = tf.lite.Interpreter(path).get_signature_runner()
    check_outputs(runner(images=images), model, images)


@pytest.mark.parametrize(
    "model_type, execution",
    [
        pytest.param("act_early_stopping", "masked", marks=pytest.mark.long),
        ("sact", "masked"),
        pytest.param("sact", "perforated", marks=pytest.mark.long),
    ],
)
def test_onnx(tmp_path, model_type, execution):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, images = halting_network(model_type, execution)
    path = exporting.export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for part in (images, images[:1, :31, :23]):
        outputs = dict(zip(names, session.run(None, {"images": part})))
        check_outputs(outputs, model, part)


@pytest.mark.long
@pytest.mark.parametrize("model_type", ["pact", "pondernet"])
def test_networks_that_stop_by_chance_are_exported_sure(model_type, lively, tmp_path):
    model = lively(
        sact_tf.cifar_resnet("1_1_3", model_type, 3, 2, test_mode="thresholded")
    )
    images = tf.random.stateless_normal([2, 16, 16, 3], [1, 2])
    logits, end_points = model.with_end_points(images, training=False)
    path = model.export_saved_model(str(tmp_path / "saved"), execution="perforated")
    outputs = tf.saved_model.load(path).signatures["serving_default"](images)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    np.testing.assert_array_equal(outputs["flops"], end_points["flops"])
    lite = exporting.export_tflite(model, str(tmp_path / "model.tflite"), (16, 16), 2)
    runner = tf.lite.Interpreter(lite).get_signature_runner()
    np.testing.assert_allclose(runner(images=images)["logits"], logits, atol=1e-4)
