"""Programs define flags of the same names; every test file gets its own program's."""

import importlib
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

import sact_tf

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
_PATIENCE = 600  # seconds


def _name(request):
    """Returns the module a test file is of: `experiments.benchmarks.input`, say."""
    return request.module.__name__.removeprefix("tests.").replace("test_", "")


@pytest.fixture(scope="module")
def program(request):
    """The program that a test file is named after, its flags defined and parsed."""
    name = _name(request)
    before = set(flags.FLAGS)
    module = importlib.import_module(name)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS([name])
    yield module
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    del sys.modules[name]


@pytest.fixture
def start(request):
    """Returns a function that starts the file's program in a process of its own."""

    def start(*arguments, **values):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", _name(request)),
                *(f"--{flag}={value}" for flag, value in values.items()),
                *arguments,
            ],
            cwd=_ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def kill_training(start, tmp_path):
    """Returns a function that trains, kills and trains on, in `tmp_path / "log"`.

    It takes the number of checkpoints to wait for, what to do to the directory before
    training goes on, and flags; it returns what the second run says as errors.
    """

    def train(checkpoints=1, damage=lambda log_dir: None, **values):
        log_dir = tmp_path / "log"
        values.update(train_log_dir=log_dir, save_interval_secs=0)
        process = start(max_number_of_steps=100000, **values)
        deadline = time.monotonic() + _PATIENCE
        while len(list(log_dir.glob("*.index"))) < checkpoints:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
        process.communicate()
        damage(log_dir)
        step = sact_tf.checkpoint_step(log_dir)
        assert step > 0
        process = start(max_number_of_steps=step + 2, **values)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        assert f"at step {step}\n" in output
        assert sact_tf.checkpoint_step(log_dir) == step + 2
        return errors

    return train


@pytest.fixture
def image_folder(tmp_path):
    """Folder of twelve noise images in two classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        directory = tmp_path / "images" / name
        directory.mkdir(parents=True)
        for k in range(6):
            pixels = rng.integers(0, 256, [40, 36, 3]).astype(np.uint8)
            Image.fromarray(pixels).save(directory / f"{k}.jpg")
    return tmp_path / "images"


@pytest.fixture
def run_imagenet(program, image_folder):
    """Returns a function that runs a program on a tiny network and those images."""

    def run(**values):
        defaults = dict(
            dataset="folder",
            dataset_dir=str(image_folder),
            image_size=32,
            model="1_1_2_1",
            base_channels=2,
            batch_size=4,
        )
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()

    return run


@pytest.fixture
def refusal(program):
    """Returns a function that runs the program with flags; returns its last words."""
    from experiments.common import programs

    def refusal(**values):
        with flagsaver.flagsaver(**values), pytest.raises(SystemExit) as error:
            programs.run_checked(program.main)
        message = str(error.value)
        assert ": error: " in message
        return message.partition(": error: ")[2]

    return refusal


@pytest.fixture
def tiny_detector(tmp_path):
    """Prefix of a checkpoint of a tiny SACT detector of two classes, and its flags."""
    from object_detection.faster_rcnn import FasterRCNN, Options

    options = Options(anchor_sizes=(16,), aspect_ratios=(1.0,), crop_size=7)
    model = FasterRCNN(2, "1_2_1_1", "sact", base_channels=2, options=options)
    prefix = str(tmp_path / "detector" / "model.ckpt-7")
    sact_tf.save_slim_checkpoint(model, prefix, 7)
    return prefix, dict(
        model="1_2_1_1",
        model_type="sact",
        base_channels=2,
        anchor_sizes=["16"],
        anchor_ratios=["1"],
        crop_size=7,
    )
