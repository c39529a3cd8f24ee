"""Moved to `experiments.benchmarks.input`; the old name still works."""

from experiments.benchmarks import input
from experiments.common import moved

moved.stand_in(__name__, input)
