"""Programs define flags of the same names; every test file gets its own program's."""

import importlib
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image


@pytest.fixture(scope="module")
def program(request):
    """The program that a test file is named after, its flags defined and parsed."""
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_")
    before = set(flags.FLAGS)
    module = importlib.import_module(f"experiments.{name}")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS([name])
    yield module
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    del sys.modules[f"experiments.{name}"]


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
