"""Files made by version 0.1.0 still load, and give what they gave then."""

import pathlib
import runpy
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import custom_ops
import sact_tf

DIRECTORY = pathlib.Path(__file__).parent.parent / "compatibility"


@pytest.fixture(scope="module")
def make():
    """What the script that made the files defines."""
    return runpy.run_path(str(DIRECTORY / "make.py"))


def recorded(name):
    """Returns the images and the outputs that belong to a file."""
    arrays = dict(np.load(DIRECTORY / f"{name}.npz"))
    return arrays.pop("images"), arrays


def assert_equal_outputs(actual, expected):
    assert expected.keys() <= actual.keys()
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype, key
        if value.dtype.kind == "i":
            np.testing.assert_array_equal(actual[key], value, err_msg=key)
        else:
            atol = 1e-4 * np.abs(value).max()
            np.testing.assert_allclose(actual[key], value, 0, atol, err_msg=key)


@pytest.mark.parametrize("name", ["cifar_sact", "cifar_vanilla", "imagenet_act"])
def test_keras_files(name, make):
    images, expected = recorded(name)
    model = keras.models.load_model(DIRECTORY / f"{name}.keras")
    assert_equal_outputs(make["outputs"](model, images), expected)
    built = make["networks"]()[name]
    assert type(model) is type(built)
    assert model.get_config() == built.get_config() | {"name": model.name}


def test_checkpoint_of_training(make):
    images, expected = recorded("checkpoint")
    model = make["small_sact"]()
    sact_tf.load_slim_checkpoint(model, str(DIRECTORY / "checkpoint"))
    assert sact_tf.checkpoint_step(str(DIRECTORY / "checkpoint")) == make["STEPS"]
    assert_equal_outputs(make["outputs"](model, images), expected)


def test_training_goes_on_with_its_accumulators(make, tmp_path):
    shutil.copytree(DIRECTORY / "checkpoint", tmp_path / "log")
    last = make["train_to"](make["small_sact"](), tmp_path / "log", make["STEPS"] + 1)
    assert sact_tf.checkpoint_step(last) == make["STEPS"] + 1
    after = np.load(DIRECTORY / "checkpoint_after.npz")
    reader = tf.train.load_checkpoint(last)
    assert set(reader.get_variable_to_shape_map()) == set(after.files)
    for name in after.files:
        actual, expected = reader.get_tensor(name), after[name]
        # 1e-5: gradients of biases before a batch norm are zero but for rounding.
        error = np.linalg.norm(actual - expected)
        assert error <= 1e-3 * np.linalg.norm(expected) + 1e-5, name


@pytest.mark.parametrize("implementation", ["tensorflow", "native"])
def test_saved_models(implementation, tmp_path):
    if implementation == "native" and custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    name = f"saved_model_{implementation}"
    images, expected = recorded(name)
    shutil.unpack_archive(DIRECTORY / f"{name}.tar.xz", tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    actual = loaded.signatures["serving_default"](images=tf.constant(images))
    assert_equal_outputs({k: v.numpy() for k, v in actual.items()}, expected)
    assert len(np.unique(expected["block_2_num_units"])) > 1  # something is skipped
    image = np.random.default_rng(0).integers(0, 256, [32, 32, 3]).astype(np.uint8)
    png = tf.io.encode_png(image)[tf.newaxis]
    from_bytes = loaded.signatures["serving_bytes"](image_bytes=png)
    image = sact_tf.CifarResNet.preprocess(tf.constant(image) / 255)[tf.newaxis]
    from_image = loaded.signatures["serving_default"](images=image)
    np.testing.assert_allclose(from_bytes["logits"], from_image["logits"], atol=1e-5)
