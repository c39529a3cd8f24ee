"""The program that exports SavedModels."""

import pytest
import tensorflow as tf
from absl.testing import flagsaver

import sact_tf


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
    image = tf.io.encode_png(tf.zeros([50, 60, 3], tf.uint8))
    assert serve(image_bytes=image[None])["ponder_cost_map"].shape == [1, 40, 40, 1]
    with pytest.raises(ValueError, match="--output_dir=.*out: must be empty"):
        run()


def test_errors_name_the_flag(run, tmp_path):
    with pytest.raises(ValueError, match="--checkpoint_dir: must be given"):
        run(checkpoint_dir="")
    with pytest.raises(ValueError, match="tile_size must be an integer >= 2"):
        run(execution="tiled")
    with pytest.raises(FileNotFoundError, match="no readable .* /nowhere"):
        run(checkpoint_dir="/nowhere")


def test_a_full_disk_leaves_nothing(run, tmp_path, no_file_larger_than):
    with no_file_larger_than(2000):
        with pytest.raises(OSError, match=r"out: cannot be written \(File too large"):
            run()
    assert not list((tmp_path / "out").iterdir())
    run()
    assert {"saved_model.pb", "variables"} <= {
        entry.name for entry in (tmp_path / "out").iterdir()
    }
