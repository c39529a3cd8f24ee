"""Moved to `experiments.common.imagenet`; the old name still works."""

from experiments.common import imagenet, moved

moved.stand_in(__name__, imagenet)
