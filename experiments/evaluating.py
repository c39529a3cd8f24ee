"""Moved to `experiments.common.evaluating`; the old name still works."""

from experiments.common import evaluating, moved

moved.stand_in(__name__, evaluating)
