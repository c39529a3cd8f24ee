"""The program that exports SavedModels."""

import io

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from PIL import Image

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
    run(execution="perforated", precision="float32", image_size=40)
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
    with pytest.raises(ValueError, match="--precision=bfloat16: needs --execution=per"):
        run(precision="bfloat16")
    with pytest.raises(FileNotFoundError, match="no readable .* /nowhere"):
        run(checkpoint_dir="/nowhere")


def test_checkpoint_of_a_detector(refusal, tiny_detector, tmp_path):
    prefix, _ = tiny_detector
    message = refusal(
        checkpoint_dir=prefix,
        output_dir=str(tmp_path / "out"),
        model="1_2_1_1",
        base_channels=2,
    )
    assert message.startswith(
        f"--checkpoint_dir={prefix}: checkpoint {prefix} is that of a detector, not of "
        "a classification network; coco_eval, coco_detect and coco_export take it"
    )
    assert "\n" not in message


def test_a_full_disk_leaves_nothing(run, tmp_path, no_file_larger_than):
    with no_file_larger_than(2000):
        with pytest.raises(OSError, match=r"out: cannot be written \(File too large"):
            run()
    assert not list((tmp_path / "out").iterdir())
    run()
    assert {"saved_model.pb", "variables"} <= {
        entry.name for entry in (tmp_path / "out").iterdir()
    }


def test_photographs_are_served_upright(run, tmp_path):
    run(image_size=32)
    serve = tf.saved_model.load(str(tmp_path / "out")).signatures["serving_bytes"]
    pixels = np.random.default_rng(0).integers(0, 256, [40, 60, 3]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels).save(files[0], "PNG", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(files[1], "PNG")
    served = serve(image_bytes=tf.constant([file.getvalue() for file in files]))
    np.testing.assert_allclose(served["logits"][0], served["logits"][1], atol=1e-5)
