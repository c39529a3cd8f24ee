"""Fixtures that several test files use."""

import contextlib
import json
import os
import pathlib
import resource
import signal

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import HealthCheck, settings

import sact_tf
from sact_tf.data.examples import Examples

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN_DIR = pathlib.Path(
    os.environ.get("SACT_GOLDEN_DIR", ROOT.parent / "shared" / "golden")
)

# A busy machine is no fault of a test.
settings.register_profile(
    "project", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def seed():
    """Gives every test the same initial weights on any machine, in any order."""
    keras.utils.set_random_seed(1)


@pytest.fixture
def golden_dir():
    """Directory of the original network's outputs; skips where there is none."""
    if not GOLDEN_DIR.is_dir():
        pytest.skip(f"no golden data in {GOLDEN_DIR}; set SACT_GOLDEN_DIR to check it")
    return GOLDEN_DIR


@pytest.fixture
def load_golden():
    """Returns a function that builds and loads the network of a golden case."""

    def load(directory, **options):
        info = json.loads((directory / "info.json").read_text())
        is_cifar = info["family"] == "cifar"
        build = sact_tf.cifar_resnet if is_cifar else sact_tf.imagenet_resnet
        model = build(
            model="_".join(map(str, info["block_num_units"])),
            model_type=info["model_type"],
            num_classes=10 if is_cifar else 11,
            base_channels=info["base_channels"],
            **{"tau": 0.005, **options},
        )
        (checkpoint,) = (directory / "ckpt").glob("*.index")
        sact_tf.load_slim_checkpoint(model, str(checkpoint.with_suffix("")))
        return model, info

    return load


@pytest.fixture(scope="session")
def lively():
    """Returns a function that gives a model weights with which halting varies."""

    def randomise(model):
        for number, variable in enumerate(model.variables):
            values = np.random.default_rng(number).normal(size=variable.shape)
            if "moving_variance" in variable.name or "gamma" in variable.name:
                values = 1 + 0.1 * np.abs(values)
            elif "halting_proba" in variable.name and "bias" in variable.name:
                values = np.full(variable.shape, -0.3)
            elif "kernel" in variable.name:
                values *= np.sqrt(1 / np.prod(variable.shape[:-1]))
            else:
                values *= 0.1
            variable.assign(values)
        return model

    return randomise


@pytest.fixture
def tiny_examples():
    """20 random images of 3 classes."""
    rng = np.random.default_rng(0)
    return Examples(
        rng.integers(0, 256, [20, 16, 16, 3]).astype(np.uint8),
        rng.integers(0, 3, [20]),
        num_classes=3,
    )


def encode_example(image, label):
    """Serialises an image (array, or encoded bytes) and label as the original does."""
    if not isinstance(image, bytes):
        image = tf.io.encode_png(image).numpy()
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/format": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"png"])),
        "image/class/label": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
        ),
    }
    return tf.train.Example(
        features=tf.train.Features(feature=features)
    ).SerializeToString()


@pytest.fixture
def write_cifar(tmp_path):
    """Returns a function that writes files like CIFAR-10's to a directory."""

    def write(examples=None, splits=("train", "test"), directory=None):
        directory = directory or tmp_path / "data"
        directory.mkdir(exist_ok=True)
        if examples is None:
            rng = np.random.default_rng(1)
            examples = [
                (rng.integers(0, 256, [32, 32, 3]).astype(np.uint8), k % 10)
                for k in range(24)
            ]
        for split in splits:
            path = str(directory / f"cifar10_{split}.tfrecord")
            with tf.io.TFRecordWriter(path) as writer:
                for image, label in examples:
                    writer.write(encode_example(image, label))
        return directory

    return write


@pytest.fixture
def no_file_larger_than():
    """Has the system refuse to write more to any file, in a block, as a full disk."""

    @contextlib.contextmanager
    def limit(size):
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)

    return limit
