"""Faster R-CNN with spatially adaptive features, on data in the format of COCO."""
