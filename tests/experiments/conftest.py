"""Programs define flags of the same names; every test file gets its own program's."""

import importlib
import sys

import pytest
from absl import flags


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
