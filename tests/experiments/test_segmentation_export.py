"""A SavedModel of a segmentation network: both signatures, and one size a batch."""

import json

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

import sact_tf
from sact_tf.segmentation import SegmentationNetwork
from sact_tf.segmentation.data import network_input


@pytest.mark.long  # perforated execution of four blocks is traced twice
def test_exports(program, lively, tmp_path):
    network = sact_tf.imagenet_resnet("1_3_1_1", "sact", 0, base_channels=2)
    model = lively(SegmentationNetwork(network, 3, 4))
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-0"))
    values = dict(
        checkpoint_dir=str(tmp_path),
        output_dir=str(tmp_path / "saved"),
        class_names="sky,road,tree",
        model="1_3_1_1",
        model_type="sact",
        base_channels=2,
        head_channels=4,
        execution="perforated",
    )
    with flagsaver.flagsaver(**values):
        program.main()
    names = tmp_path / "saved" / "assets.extra" / "classes.json"
    assert json.loads(names.read_text()) == ["sky", "road", "tree"]
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [2, 35, 47, 3]).astype(np.uint8)
    images = network_input(tf.constant(pixels))
    logits, end_points = model.with_end_points(images, training=False)
    encoded = tf.stack([tf.io.encode_png(image) for image in pixels])
    for outputs in (
        loaded.signatures["serving_default"](images=images),
        loaded.signatures["serving_bytes"](image_bytes=encoded),
    ):
        assert outputs["classes"].shape == [2, 35, 47]
        np.testing.assert_allclose(
            outputs["probabilities"], tf.nn.softmax(logits), atol=2e-3
        )
        np.testing.assert_array_equal(outputs["flops"], end_points["flops"])
        np.testing.assert_array_equal(outputs["head_flops"], end_points["head_flops"])
        assert outputs["ponder_cost_map"].shape == [2, 35, 47, 1]
    several = tf.stack([encoded[0], tf.io.encode_png(pixels[0, :9])])
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be of one size"):
        loaded.serve_bytes(several)
