"""Moved to `experiments.benchmarks.detection`; the old name still works."""

from experiments.benchmarks import detection
from experiments.common import moved

moved.stand_in(__name__, detection)
