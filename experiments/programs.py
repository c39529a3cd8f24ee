"""Moved to `experiments.common.programs`; the old name still works."""

from experiments.common import moved, programs

moved.stand_in(__name__, programs)
