"""Moved to `experiments.benchmarks.exports`; the old name still works."""

from experiments.benchmarks import exports
from experiments.common import moved

moved.stand_in(__name__, exports)
