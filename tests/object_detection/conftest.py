"""Small detectors and a small COCO data set."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from object_detection.faster_rcnn import FasterRCNN, Options


@pytest.fixture(scope="session")
def make_detector():
    """Returns a function that builds a small detector with lively heads."""

    def make(model_type="sact", model="1_2_2_1", num_classes=3, **options):
        execution = options.pop("execution", "masked")
        defaults = dict(
            anchor_sizes=(16, 32),
            num_proposals=12,
            num_region_samples=8,
            num_anchor_samples=32,
            crop_size=14,
            score_threshold=0.0,
        )
        model = FasterRCNN(
            num_classes,
            model,
            model_type,
            base_channels=4,
            tau=0.1,
            execution=execution,
            options=Options(**{**defaults, **options}),
        )
        generator = tf.random.Generator.from_seed(1)
        for layer in (model.rpn.score, model.rpn.box, model.box_classifier.class_conv):
            layer.kernel.assign(0.3 * generator.normal(layer.kernel.shape))
        for block in model.blocks:
            for head in getattr(block, "heads", []):
                conv = getattr(head, "local_conv", head.global_conv)
                conv.kernel.assign(generator.normal(conv.kernel.shape))
                conv.bias.assign([-0.5])
        return model

    return make


@pytest.fixture
def coco_dataset(tmp_path):
    """Four small photographs in COCO's format, with what real files have too.

    Category ids have gaps. Image 7: an object, a box across the border, one without
    area, one outside; 9: a crowd beside an object; 12: no boxes; 30: an object.
    """
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = []
    for image_id, (width, height) in {
        7: (64, 48),
        9: (40, 60),
        12: (50, 50),
        30: (80, 40),
    }.items():
        name = f"{image_id}.png"
        pixels = rng.integers(0, 256, [height, width, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
        images.append(dict(id=image_id, file_name=name, width=width, height=height))
    boxes = [
        (7, 3, [10, 8, 20, 16], 0),
        (7, 90, [50, 40, 30, 20], 0),
        (7, 3, [5, 5, 0, 10], 0),
        (7, 3, [70, 5, 10, 10], 0),
        (9, 3, [0, 0, 30, 30], 1),
        (9, 90, [4, 6, 10, 20], 0),
        (30, 90, [30, 10, 24, 24], 0),
    ]
    content = dict(
        images=images,
        annotations=[
            dict(
                id=k,
                image_id=image_id,
                category_id=category_id,
                bbox=box,
                iscrowd=iscrowd,
                area=box[2] * box[3],
            )
            for k, (image_id, category_id, box, iscrowd) in enumerate(boxes, 1)
        ],
        categories=[dict(id=90, name="cell"), dict(id=3, name="plate")],
    )
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return path, folder, content
