"""Tiny segmentation networks and folders of labelled images."""

import numpy as np
import pytest
from PIL import Image

import sact_tf
from sact_tf.segmentation import SegmentationNetwork


@pytest.fixture
def make():
    """Returns a function that makes a tiny segmentation network of three classes."""

    def make(model_type="sact", model="1_2_1_1", num_classes=3, **options):
        if model_type == "iterative":
            limits = [int(count) for count in model.split("_")]
            network = sact_tf.iterative_net(
                "iterative", limits, num_classes=0, base_channels=2, **options
            )
        else:
            network = sact_tf.imagenet_resnet(
                model, model_type, 0, base_channels=2, **options
            )
        return SegmentationNetwork(network, num_classes, head_channels=4, bins=(1, 2))

    return make


@pytest.fixture
def folders(tmp_path):
    """Folders of four images of two sizes, and of labels: three classes, void 255."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for k, (height, width) in enumerate([(40, 48), (40, 48), (33, 50), (40, 48)]):
        pixels = rng.integers(0, 256, [height, width, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.jpg")
        labels = rng.integers(0, 3, [height, width]).astype(np.uint8)
        labels[:4] = 255
        Image.fromarray(labels).save(tmp_path / "labels" / f"{k}.png")
    return str(tmp_path / "images"), str(tmp_path / "labels")
