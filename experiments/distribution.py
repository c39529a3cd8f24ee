"""Moved to `experiments.common.distribution`; the old name still works."""

from experiments.common import distribution, moved

moved.stand_in(__name__, distribution)
