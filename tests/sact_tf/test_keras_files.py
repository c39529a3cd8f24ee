"""Keras files: there and back; and files that hold anything else."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import sact_tf
from sact_tf import keras_files
from sact_tf.data.examples import DataError

RAN = []


@pytest.fixture(scope="module")
def model():
    model = sact_tf.cifar_resnet("1", "sact", 3, base_channels=2)
    model(tf.zeros([1, 16, 16, 3]))
    return model


@pytest.fixture(scope="module")
def archive(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "a.keras"
    keras_files.save_network(model, path)
    return path


def test_there_and_back(model, archive, tmp_path):
    other = keras_files.load_network(archive)
    assert type(other) is type(model)
    weights = tmp_path / "a.weights.h5"
    keras_files.save_weights(model, weights)
    third = type(model).from_config(model.get_config())
    keras_files.load_weights(third, weights)
    for loaded in (other, third):
        for a, b in zip(model.get_weights(), loaded.get_weights()):
            np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["a.weights.h5"]


def test_mixed_precision_comes_back(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = sact_tf.cifar_resnet("1", "act", 3, base_channels=2)
        keras_files.save_network(model, tmp_path / "a.keras")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    loaded = keras_files.load_network(tmp_path / "a.keras")
    assert loaded.get_config() == model.get_config()


def run_code(x):
    RAN.append(1)
    return x


def lambda_model():
    return keras.Sequential([keras.layers.Lambda(run_code, input_shape=[3])])


@pytest.mark.parametrize("kind", ["hdf5", "directory", "archive"])
def test_code_of_a_file_does_not_run(tmp_path, kind):
    model, path = lambda_model(), tmp_path / "x.keras"
    RAN.clear()
    if kind == "hdf5":
        model.save(tmp_path / "x.h5", save_format="h5")
        (tmp_path / "x.h5").rename(path)
    elif kind == "directory":
        model.save(tmp_path / "x", save_format="tf")
        (tmp_path / "x").rename(path)
    else:
        model.save(path, save_format="keras")
    RAN.clear()
    with pytest.raises(DataError, match=r"x\.keras: (is no|config\.json is of)"):
        keras_files.load_network(path)
    assert not RAN


def changed(archive, path, change=lambda config: None, **members):
    """Writes the archive with another configuration and other members."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                config = json.loads(content)
                content = json.dumps(change(config) or config)
            content = members.get(name.partition(".")[0], content)
            if content is not None:
                target.writestr(name, content)
    return path


LAMBDA = {"module": "keras.layers", "class_name": "Lambda", "config": {}}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: c.update(registered_name="Sequential"),
            "is of 'Sequential'; expected",
        ),
        (lambda c: c.update(registered_name=None), "is of null"),
        (lambda c: c.update(registered_name=["x"]), r"is of \['x'\]"),
        (lambda c: c.update(registered_name="sact_tf>Momentum"), "is of 'sact_tf>Mom"),
        (lambda c: c.update(registered_name="sact_tf>Nothing"), "is of 'sact_tf>Noth"),
        (lambda c: c.update(config=[1]), r"has config \[1\]"),
        (lambda c: c["config"].update(model=LAMBDA), "has model {"),
        (lambda c: c["config"].update(dtype=LAMBDA), "has dtype {"),
        (lambda c: c["config"].update(model=[[1]]), r"has model \[\[1\]\]"),
        (lambda c: c["config"].update(unknown=3), "holds no network of this package"),
        (lambda c: c["config"].update(model="x"), "holds no network of this package"),
        (lambda c: c["config"].update(base_channels="2"), "holds no network of this p"),
        (
            lambda c: c["config"].update(model="1000000000"),
            "has model '1000000000'; expected at most 1000 residual units per block",
        ),
        (lambda c: [c], "is of null; expected a network"),
    ],
)
def test_configurations_of_other_things(archive, tmp_path, change, message):
    path = changed(archive, tmp_path / "x.keras", change)
    with pytest.raises(DataError, match=message):
        keras_files.load_network(path)


def lying_weights(write):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        write(file)
    return content.getvalue()


LIES = [
    (
        lambda f: f.create_dataset("x", (10**6, 10**5), "f4", chunks=True),
        "x claims 400000000000 bytes and has 0",
    ),
    (
        lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
        "x leads else",
    ),
    (lambda f: f.__setitem__("x", h5py.SoftLink("/y")), "x leads elsewhere"),
    (
        lambda f: f.create_dataset("x", (8,), "u1", external=[("/etc/passwd", 0, 8)]),
        "x leads to other files",
    ),
]


@pytest.mark.parametrize("write, message", LIES)
def test_weights_that_lie(model, archive, tmp_path, write, message):
    content = lying_weights(write)
    path = changed(archive, tmp_path / "x.keras", model=content)
    with pytest.raises(DataError, match=f"holds no readable weights .*{message}"):
        keras_files.load_network(path)
    (tmp_path / "x.weights.h5").write_bytes(content)
    with pytest.raises(DataError, match=f"holds no readable weights .*{message}"):
        keras_files.load_weights(model, tmp_path / "x.weights.h5")


def test_weights_of_another_layout(model, archive, tmp_path):
    content = lying_weights(lambda file: file.create_group("layers/other/vars"))
    path = changed(archive, tmp_path / "x.keras", model=content)
    with pytest.raises(DataError, match="x.keras: holds no network of this package"):
        keras_files.load_network(path)
    (tmp_path / "x.weights.h5").write_bytes(content)
    with pytest.raises(DataError, match="does not hold the weights of this network"):
        keras_files.load_weights(model, tmp_path / "x.weights.h5")


def test_archives_that_are_none(model, archive, tmp_path):
    path = tmp_path / "x.keras"
    changed(archive, path, metadata=None)
    with pytest.raises(
        DataError, match="is no .keras archive: it has no metadata.json"
    ):
        keras_files.load_network(path)
    for config in (b"{", b"[" * 200000, b"\xff"):
        changed(archive, path, config=config)
        with pytest.raises(DataError, match="is no .keras archive"):
            keras_files.load_network(path)
    whole = archive.read_bytes()
    for content in (b"", b"PK", whole[: len(whole) // 2], b"x" * 2000):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is no .keras archive"):
            keras_files.load_network(path)
        with pytest.raises(DataError, match="holds no readable weights"):
            keras_files.load_weights(model, path)
    with pytest.raises(DataError, match="is no file"):
        keras_files.load_network(tmp_path)
    with pytest.raises(FileNotFoundError, match="none.keras: does not exist"):
        keras_files.load_network(tmp_path / "none.keras")
