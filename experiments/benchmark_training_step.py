"""Moved to `experiments.benchmarks.training_step`; the old name still works."""

from experiments.benchmarks import training_step
from experiments.common import moved

moved.stand_in(__name__, training_step)
