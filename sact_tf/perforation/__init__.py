"""Perforated convolutional networks (Figurnov et al., NIPS 2016).

Static masks say at which positions convolutions are computed; between them, outputs are
those of the nearest position.
"""

from sact_tf.perforation.implicit import CompactNetwork, PerforatedModel
from sact_tf.perforation.layer import PerforatedConv2D
from sact_tf.perforation.masks import make_mask
from sact_tf.perforation.search import search_rates
from sact_tf.perforation.surgery import Rates, perforate
from sact_tf.perforation.survey import survey

__all__ = [
    "CompactNetwork",
    "PerforatedConv2D",
    "PerforatedModel",
    "Rates",
    "make_mask",
    "perforate",
    "search_rates",
    "survey",
]
