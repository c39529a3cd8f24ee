"""Moved to `experiments.benchmarks.tools`; the old name still works."""

from experiments.benchmarks import tools
from experiments.common import moved

moved.stand_in(__name__, tools)
