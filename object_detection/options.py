"""What a detector is beside its network."""

from __future__ import annotations

import dataclasses

from object_detection import anchors


@dataclasses.dataclass(frozen=True)
class Options:
    """What a detector is beside its network; defaults are the paper's.

    Attributes:
        anchor_sizes: Sides of square anchors, in pixels.
        aspect_ratios: Of anchors, width divided by height.
        rpn_channels: Of the proposal network's 3x3 convolution; None: half of the
            features', 512 in ordinary networks.
        num_proposals: Regions that are classified in each image.
        proposal_nms_iou: Where two proposals overlap by more than this
            (intersection over union), the one with the lower score is dropped.
        num_anchor_samples: Anchors per image that training looks at.
        num_region_samples: Proposals per image that training looks at.
        foreground_fraction: The largest share of objects among these.
        crop_size: Samples of the features along each side of a region.
        pool_size: Side that they are pooled to for block 4.
        block4_stride: Stride of block 4, 1 or 2.
        score_threshold: Detections of lower probability are dropped.
        nms_iou: The same, for two detections of one class.
        max_detections: The largest number of detections in an image.
        train_batch_norm: Whether batch normalization uses and averages the moments of
            training batches. The paper keeps the stored ones.
    """

    anchor_sizes: tuple[float, ...] = anchors.SIZES
    aspect_ratios: tuple[float, ...] = anchors.ASPECT_RATIOS
    rpn_channels: int | None = None
    num_proposals: int = 300
    proposal_nms_iou: float = 0.6
    num_anchor_samples: int = 256
    num_region_samples: int = 256
    foreground_fraction: float = 0.25
    crop_size: int = 28
    pool_size: int = 7
    block4_stride: int = 1
    score_threshold: float = 0.01
    nms_iou: float = 0.6
    max_detections: int = 100
    train_batch_norm: bool = False

    def __post_init__(self):
        """Raises ValueError on a bad option, naming it."""
        for name in ("anchor_sizes", "aspect_ratios"):
            values = tuple(getattr(self, name))  # lists where they come from files
            object.__setattr__(self, name, values)
            if not values or not all(0 < v < float("inf") for v in values):
                raise ValueError(f"{name} must be numbers > 0; got {values}")
        if self.block4_stride not in (1, 2):
            raise ValueError(f"block4_stride must be 1 or 2; got {self.block4_stride}")
        if self.pool_size < 1 or self.crop_size % self.pool_size:
            raise ValueError(
                f"crop_size must be a multiple of pool_size {self.pool_size}; got "
                f"{self.crop_size}"
            )
