"""Semantic segmentation with any network of the library as its backbone."""

from sact_tf.segmentation.head import SegmentationHead
from sact_tf.segmentation.losses import VOID
from sact_tf.segmentation.network import SegmentationNetwork

__all__ = ["VOID", "SegmentationHead", "SegmentationNetwork"]
