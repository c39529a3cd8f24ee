"""Another name of `sact_tf.units`, as which this module was known."""

from sact_tf.units import BasicUnit, BottleneckUnit

__all__ = ["BasicUnit", "BottleneckUnit"]
