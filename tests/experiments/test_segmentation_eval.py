"""The programs that use a trained segmentation network, on one tiny checkpoint."""

import json

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from PIL import Image

import sact_tf
from sact_tf.segmentation import SegmentationNetwork

FLAGS = dict(
    model="1_2_1_1", model_type="sact", base_channels=2, head_channels=4, tau=0.01
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Directories of a segmentation network's checkpoint and a classifier's."""
    root = tmp_path_factory.mktemp("trained")
    network = sact_tf.imagenet_resnet("1_2_1_1", "sact", 0, base_channels=2)
    model = SegmentationNetwork(network, 11, 4)
    sact_tf.save_slim_checkpoint(model, str(root / "seg" / "model.ckpt-7"), 7)
    other = sact_tf.imagenet_resnet("1_2_1_1", "sact", 3, base_channels=2)
    sact_tf.save_slim_checkpoint(other, str(root / "resnet" / "model.ckpt-0"))
    return root


def test_evaluates_and_writes(program, trained, tmp_path, capsys):
    values = dict(
        dataset="shapes",
        num_examples=3,
        batch_size=2,
        checkpoint_dir=str(trained / "seg"),
        eval_dir=str(tmp_path),
        evaluate_once=True,
        **FLAGS,
    )
    with flagsaver.flagsaver(**values):
        program.main()
    written = json.loads((tmp_path / "eval.json").read_text())
    assert written["program"] == "segmentation_eval"
    assert (written["global_step"], written["num_examples"]) == (7, 3)
    assert 0 <= written["Mean IoU"] <= 1 and 0 <= written["Pixel Accuracy"] <= 1
    assert written["Total Macs/mean"] == written["Total Flops/mean"] / 2
    total = written["Backbone Flops/max"] + written["Head Flops/max"]
    assert written["Total Flops/max"] == total
    assert written["block2/num_units_max"] in (1, 2)
    confusion = json.loads((tmp_path / "confusion.json").read_text())
    pixels = np.array(confusion["pixels"])
    assert pixels.sum() == 3 * 128 * 128
    assert confusion["labels"][0] == "background"
    accuracy = np.trace(pixels) / pixels.sum()
    np.testing.assert_allclose(written["Pixel Accuracy"], accuracy)
    assert "Mean IoU" in capsys.readouterr().out


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(checkpoint_dir="/nowhere"), "--checkpoint_dir=/nowhere"),
        (dict(num_classes=5), "--dataset=shapes: has 11 classes; 5 are asked for"),
        (dict(execution="tiled"), "--tile_size=1: tile_size must be an integer >= 2"),
    ],
)
def test_errors_name_the_flag(refusal, trained, tmp_path, values, message):
    said = refusal(
        **{
            **FLAGS,
            "dataset": "shapes",
            "num_examples": 1,
            "checkpoint_dir": str(trained / "seg"),
            "eval_dir": str(tmp_path),
            "evaluate_once": True,
            **values,
        }
    )
    assert said.startswith(message), said


def test_a_classifier_is_told_apart(refusal, trained, tmp_path):
    said = refusal(
        dataset="shapes",
        num_examples=1,
        checkpoint_dir=str(trained / "resnet"),
        eval_dir=str(tmp_path),
        evaluate_once=True,
        **FLAGS,
    )
    assert "is that of a classification network, not of a segmentation" in said
    assert "imagenet_eval" in said and "\n" not in said.strip()
    assert not (tmp_path / "eval.json").exists()


def test_images_of_several_sizes(program, trained, tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for k, (height, width) in enumerate([(40, 48), (33, 50)]):
        pixels = np.full([height, width, 3], 40 * k, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.png")
        labels = tf.fill([height, width], 3 + k).numpy().astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{k}.png")
    values = dict(
        images=str(tmp_path / "images"),
        labels=str(tmp_path / "labels"),
        checkpoint_dir=str(trained / "seg"),
        eval_dir=str(tmp_path / "eval"),
        evaluate_once=True,
        batch_size=4,
        long_side=44,
        execution="perforated",
        **FLAGS,
    )
    with flagsaver.flagsaver(**values):
        program.main()
    confusion = json.loads((tmp_path / "eval" / "confusion.json").read_text())
    rows = np.array(confusion["pixels"]).sum(1)
    assert rows[3] == 40 * 48 and rows[4] == 33 * 50 and rows.sum() == rows[3:5].sum()
