"""Moved to `experiments.common.detection`; the old name still works."""

from experiments.common import detection, moved

moved.stand_in(__name__, detection)
