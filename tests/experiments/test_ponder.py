"""The program that tells what a network spends on the images of a folder."""

import csv
import json

import numpy as np
import pytest
from absl.testing import flagsaver

import sact_tf


@pytest.fixture
def options(tmp_path, lively):
    network = dict(model="1_2_1_1", num_classes=3, base_channels=2)
    model = lively(sact_tf.imagenet_resnet(model_type="sact", **network))
    path = sact_tf.save_slim_checkpoint(model, str(tmp_path / "net" / "model.ckpt-0"))
    output = str(tmp_path / "out")
    return dict(checkpoint_dir=path, output_dir=output, model_type="sact", **network)


def test_folder(program, options, image_folder, tmp_path, capsys):
    with flagsaver.flagsaver(images=str(image_folder), **options):
        program.main()
    assert "12 images took" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "ponder.json").read_text())
    with open(tmp_path / "out" / "ponder.csv") as file:
        table = list(csv.DictReader(file))
    assert len(rows) == len(table) == 12
    assert list(table[0]) == list(rows[0])
    network = {k: options[k] for k in ("model", "num_classes", "base_channels")}
    model = sact_tf.imagenet_resnet(model_type="sact", **network)
    sact_tf.load_slim_checkpoint(model, options["checkpoint_dir"])
    for k in (0, 7):
        expected = sact_tf.ponder(model, rows[k]["image"])
        assert rows[k]["flops"] == expected.flops == int(table[k]["flops"])
        np.testing.assert_allclose(rows[k]["block2/units"], expected.units["block2"])
        assert (rows[k]["height"], rows[k]["width"]) == (40, 36)
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert len(pictures) == 24 and "cat_0_overlay.png" in pictures


def test_bad_files_are_named(program, options, refusal, image_folder, tmp_path, capsys):
    (image_folder / "cat" / "0.jpg").write_bytes(b"no image")
    message = refusal(images=str(image_folder), pictures=False, **options)
    assert message.startswith(f"--images={image_folder}: 1 of 12 files")
    assert f"{image_folder}/cat/0.jpg: cannot be read" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "ponder.json").read_text())) == 11
    (tmp_path / "empty").mkdir()
    message = refusal(images=str(tmp_path / "empty"), **options)
    assert message == f"--images={tmp_path}/empty: holds no JPEG or PNG file"
