"""Examples in docstrings of the three packages give what they say."""

import doctest
import importlib
import pathlib

import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("custom_ops", "sact_tf", "object_detection")
    for path in (ROOT / package).rglob("*.py")
    if "\n    >>> " in path.read_text()
)


def test_there_are_examples():
    assert {"sact_tf.halting.cumulative", "sact_tf.halting.rule"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs={"tf": tf})
    assert results.attempted > 0 and results.failed == 0
