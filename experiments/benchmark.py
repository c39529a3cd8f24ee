"""Moved to `experiments.benchmarks.network`; the old name still works."""

from experiments.benchmarks import network
from experiments.common import moved

moved.stand_in(__name__, network)
