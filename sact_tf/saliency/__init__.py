"""Ponder cost as a map of visual saliency (SACT, section 4.3).

A ponder cost map, blurred and blended with a prior for the centre, predicts where
people look: `maps` makes the prediction, `metrics` scores it, `data` reads recorded
fixations, `tuning` chooses blur and blend on one half of the images and scores the
other.
"""

from sact_tf.saliency.data import (
    FixationData,
    Stimulus,
    load_cat2000,
    load_mit1003,
    load_npz,
)
from sact_tf.saliency.maps import centre_prior, saliency_map

__all__ = [
    "FixationData",
    "Stimulus",
    "centre_prior",
    "load_cat2000",
    "load_mit1003",
    "load_npz",
    "saliency_map",
]
