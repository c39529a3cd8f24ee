"""Residual units: what they promise, and those of the networks here."""

from sact_tf.units.basic import BasicUnit
from sact_tf.units.bottleneck import BottleneckUnit
from sact_tf.units.iterative import IterativeUnit
from sact_tf.units.unit import Unit

__all__ = ["BasicUnit", "BottleneckUnit", "IterativeUnit", "Unit"]
