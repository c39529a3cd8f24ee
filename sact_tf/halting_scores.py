"""Another name of `sact_tf.halting`'s heads, as which this module was known."""

from sact_tf.halting import HALTING_BIAS, ImageHaltingScore, SpatialHaltingScore

__all__ = ["HALTING_BIAS", "ImageHaltingScore", "SpatialHaltingScore"]
