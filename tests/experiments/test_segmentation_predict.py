"""Segmented photographs: files of every size, pictures, a broken file."""

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

import sact_tf
from sact_tf.segmentation import SegmentationNetwork


@pytest.fixture
def values(tmp_path):
    """Flags of a run on two photographs."""
    network = sact_tf.imagenet_resnet("1_2_1_1", "sact", 0, base_channels=2)
    model = SegmentationNetwork(network, 3, 4)
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-0"))
    rng = np.random.default_rng(0)
    for name, size in (("a.jpg", (40, 60)), ("b.png", (70, 30))):
        pixels = rng.integers(0, 256, [*size, 3]).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return dict(
        images_pattern=str(tmp_path / "[ab].*"),
        checkpoint_dir=str(tmp_path),
        output_dir=str(tmp_path / "out"),
        class_names="sky,road,tree",
        model="1_2_1_1",
        model_type="sact",
        base_channels=2,
        head_channels=4,
        execution="perforated",
        long_side=50,
    )


def test_writes_pictures(program, values, tmp_path, capsys):
    with flagsaver.flagsaver(**values):
        program.main()
    kinds = ("classes", "overlay", "figure", "blocks")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}_{kind}.png" for name in "ab" for kind in kinds}
    classes = np.asarray(Image.open(tmp_path / "out" / "a_classes.png"))
    assert classes.shape == (40, 60) and classes.max() < 3
    said = capsys.readouterr().out
    shares = {k: (classes == k).mean() for k in range(3)}
    most = ["sky", "road", "tree"][max(shares, key=shares.get)]
    assert f"a.jpg: {most} {100 * max(shares.values()):.0f} %" in said
    assert "FLOPs of the backbone" in said


def test_a_broken_file_is_named_and_the_others_drawn(refusal, values, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 nothing")
    said = refusal(**values)
    assert "1 of 2 files cannot be read" in said
    assert "a.jpg" in capsys.readouterr().err
    assert (tmp_path / "out" / "b_figure.png").exists()


def test_another_number_of_classes_is_named(refusal, values):
    said = refusal(**{**values, "num_classes": 7, "class_names": ""})
    assert said.startswith("--num_classes=7: ") and "has 3 classes" in said
    said = refusal(**{**values, "class_names": "sky,road"})
    assert said.startswith("--class_names: class names must be 3")
