"""The program that exports SavedModels."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

import sact_tf
from sact_tf import visualization


@pytest.fixture
def run(program, tmp_path):
    model = sact_tf.cifar_resnet("1", "sact", 3, base_channels=2)
    options = dict(
        network="cifar",
        model="1",
        model_type="sact",
        num_classes=3,
        base_channels=2,
        checkpoint_dir=sact_tf.save_slim_checkpoint(
            model, str(tmp_path / "model.ckpt")
        ),
        output_dir=str(tmp_path / "out"),
    )

    def run(**values):
        with flagsaver.flagsaver(**{**options, **values}):
            program.main()

    return run


def test_exports(run, tmp_path):
    run(execution="perforated", image_size=40)
    serve = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_bytes"]
    image = np.random.default_rng(0).integers(0, 256, [50, 60, 3]).astype(np.uint8)
    outputs = serve(image_bytes=tf.io.encode_png(image)[None])
    model = sact_tf.cifar_resnet("1", "sact", 3, base_channels=2)
    sact_tf.load_slim_checkpoint(model, str(tmp_path / "model.ckpt"))
    image = model.preprocess(tf.image.convert_image_dtype(image, tf.float32), 40)
    logits, end_points = model.with_end_points(image[None], training=False)
    np.testing.assert_allclose(outputs["logits"], logits, atol=1e-4)
    expected = visualization.sact_map(end_points)
    assert expected.shape == [1, 40, 40, 1]
    np.testing.assert_allclose(outputs["ponder_cost_map"], expected, atol=1e-4)
    with pytest.raises(ValueError, match="--output_dir=.*out: must be empty"):
        run()


def test_errors_name_the_flag(run, tmp_path):
    with pytest.raises(ValueError, match="--checkpoint_dir: must be given"):
        run(checkpoint_dir="")
    with pytest.raises(ValueError, match="tile_size must be an integer >= 2"):
        run(execution="tiled")
    with pytest.raises(FileNotFoundError, match="no readable .* /nowhere"):
        run(checkpoint_dir="/nowhere")
