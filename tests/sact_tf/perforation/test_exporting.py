"""SavedModels of perforated networks, and Keras files of others."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf import keras_files
from sact_tf.data.examples import DataError
from sact_tf.perforation import exporting, perforate, surgery

layers = keras.layers


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input([8, 8, 3])
    x = layers.Conv2D(4, 3, activation="relu", padding="same", name="one")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="two")(layers.MaxPooling2D(2)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3, "softmax")(x))


_SERVE = """
import sys
import numpy as np
import tensorflow as tf

x = np.load(sys.argv[2])
outputs = tf.saved_model.load(sys.argv[1]).signatures["serving_default"](images=x)
np.save(sys.argv[3], outputs["probabilities"])
assert "sact_tf" not in sys.modules and "custom_ops" not in sys.modules
"""


@pytest.mark.long
def test_saved_model_of_tensorflow_alone(model, tmp_path):
    fast = perforate(model, 0.4)
    path = exporting.export_saved_model(fast, str(tmp_path / "saved"))
    x = np.random.default_rng(0).normal(size=[3, 8, 8, 3]).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    arguments = [path, str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([sys.executable, "-c", _SERVE, *arguments], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), fast(x), atol=1e-5)


@pytest.mark.parametrize("implementation", ["native", "tensorflow"])
def test_saved_models_hold_native_ops_or_none(model, tmp_path, implementation):
    is_native = implementation == "native"
    if is_native and not custom_ops.has_kernel("IndexedConv2D", "CPU", tf.float32):
        pytest.skip("the native kernels can not be compiled here")
    fast = perforate(model, 0.4)
    path = exporting.export_saved_model(fast, str(tmp_path / "saved"), implementation)
    serve = tf.saved_model.load(path).signatures["serving_default"]
    graph = serve.graph.as_graph_def()
    bodies = [graph.node, *(f.node_def for f in graph.library.function)]
    ops = {node.op for nodes in bodies for node in nodes}
    assert ("IndexedConv2D" in ops) == ("IndexedPool" in ops) == is_native
    x = tf.random.normal([3, 8, 8, 3])
    np.testing.assert_allclose(serve(images=x)["probabilities"], fast(x), atol=1e-5)


def test_outputs(model, tmp_path):
    logits = keras.Model(model.inputs, model.layers[-2].output)
    for network, names in (
        (model, {"probabilities", "top_classes", "top_probabilities"}),
        (logits, {"logits", "probabilities", "top_classes", "top_probabilities"}),
    ):
        fast = perforate(network, 0.4)
        path = exporting.export_saved_model(fast, str(tmp_path / network.name))
        serve = tf.saved_model.load(path).signatures["serving_default"]
        outputs = serve(images=tf.zeros([2, 8, 8, 3]))
        assert set(outputs) == names
        np.testing.assert_allclose(
            tf.reduce_sum(outputs["probabilities"], 1), [1, 1], rtol=1e-5
        )


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved"])
def test_any_keras_file_is_loaded(model, tmp_path, name):
    path = str(tmp_path / name)
    model.save(path)
    loaded = keras_files.load_model(path)
    x = tf.random.normal([1, 8, 8, 3])
    np.testing.assert_allclose(loaded(x), model(x), atol=1e-6)
    fast = perforate(loaded, 0.5)
    assert list(surgery.realised(fast)) == ["one", "two"]


def lambda_model(path):
    inputs = keras.Input([8, 8, 3])
    keras.Model(inputs, layers.Lambda(lambda x: x + 1)(inputs)).save(str(path))


def plain_saved_model(path):
    tf.saved_model.save(tf.Module(), str(path))


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("saved", plain_saved_model, "is a SavedModel that holds no Keras layers"),
        ("empty", lambda path: path.mkdir(), "is a directory that holds no Keras"),
        ("a.keras", lambda path: path.write_text("x"), "neither a .keras archive nor"),
        ("b.keras", lambda_model, "holds no Keras model"),
        ("b.h5", lambda_model, "holds no Keras model"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        keras_files.load_model(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="none.keras: does not exist"):
        keras_files.load_model(str(tmp_path / "none.keras"))
