"""The detection program on photographs: pictures, results, bad input."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

import sact_tf
from object_detection.faster_rcnn import FasterRCNN, Options


@pytest.fixture
def run(program, image_folder, tmp_path):
    """Returns a function that runs the program on noise images."""
    options = Options(anchor_sizes=(16,), aspect_ratios=(1.0,), crop_size=7)
    model = FasterRCNN(2, "1_1_1_1", "sact", base_channels=2, options=options)
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "log" / "model.ckpt-7"))

    def run(**values):
        defaults = dict(
            model="1_1_1_1",
            model_type="sact",
            base_channels=2,
            anchor_sizes=["16"],
            anchor_ratios=["1"],
            num_proposals=8,
            crop_size=7,
            short_side=48,
            num_classes=2,
            min_score=0.0,
            score_threshold=0.0,
            checkpoint_dir=str(tmp_path / "log"),
            images_pattern=str(image_folder / "cat" / "[01].jpg"),
            output_dir=str(tmp_path / "drawn"),
        )
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()

    return run


@pytest.mark.parametrize("execution", ["masked", "perforated"])
def test_pictures_and_results(run, tmp_path, capsys, execution):
    run(execution=execution)
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    kinds = ("blocks", "detections", "map", "overlay")
    assert names == sorted(
        [f"{k}_{n}.png" for k in "01" for n in kinds] + ["detections.json"]
    )
    for kind in ("detections", "overlay"):
        drawn = np.asarray(Image.open(tmp_path / "drawn" / f"0_{kind}.png"))
        assert drawn.shape[:2] == (40, 36)  # as the photograph, not as resized
    rows = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    assert {row["file_name"] for row in rows} == {"0.jpg", "1.jpg"}
    for row in rows:
        left, top, width, height = row["bbox"]
        assert left + width <= 36.01 and top + height <= 40.01
    assert capsys.readouterr().out.count("% of the ordinary network's") == 2


def test_photographs_of_any_kind(run, tmp_path, capsys):
    for name, size, mode in [
        ("tiny.png", (10, 10), "RGB"),
        ("line.png", (8000, 20), "RGB"),
        ("grey.jpg", (70, 50), "L"),
        ("alpha.png", (40, 70), "RGBA"),
        ("cmyk.jpg", (33, 33), "CMYK"),
    ]:
        Image.new(mode, size).save(tmp_path / name)
    run(images_pattern=str(tmp_path / "*.[jp]*g"))
    assert capsys.readouterr().out.count("% of the ordinary network's") == 5
    with Image.open(tmp_path / "drawn" / "line_overlay.png") as picture:
        assert picture.size == (8000, 20)


def test_names_and_ids_of_a_data_set(run, tmp_path):
    content = dict(
        images=[dict(id=70, file_name="x/0.jpg", width=36, height=40)],
        annotations=[],
        categories=[dict(id=9, name="dog"), dict(id=4, name="cat")],
    )
    (tmp_path / "truth.json").write_text(json.dumps(content))
    run(categories=str(tmp_path / "truth.json"), num_classes=None)
    rows = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    assert {r["image_id"] for r in rows if r["file_name"] == "0.jpg"} == {70}
    assert {row["category_id"] for row in rows} <= {4, 9}


def test_a_file_that_cannot_be_read_is_passed_over(run, image_folder, tmp_path, capsys):
    (image_folder / "cat" / "0.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="1 of 2 files cannot be read"):
        run()
    assert "0.jpg: cannot be read" in capsys.readouterr().err
    assert (tmp_path / "drawn" / "1_detections.png").exists()


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(images_pattern="/nowhere/*"), "--images_pattern=/nowhere/.: matches no"),
        (dict(checkpoint_dir="/nowhere"), "--checkpoint_dir=/nowhere: holds no"),
        (dict(num_classes=None), "--categories or --num_classes: one must be given"),
        (dict(output_dir="/proc/x"), "--output_dir=/proc/x: cannot be written"),
        (dict(num_classes=5), "box_classifier/class"),
    ],
)
def test_errors_name_the_flag(run, values, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(**values)


@pytest.mark.parametrize(
    "ids, expected",
    [
        ({}, [1, 2, 3]),
        ({"1.jpg": 2, "x/1.jpg": 9}, [1, 2, 3]),
        ({"b/1.jpg": 1}, [2, 1, 3]),
        ({"0.jpg": "x", "b/1.jpg": "y", "c/1.jpg": 7}, ["x", "y", 7]),
        ({"other/0.jpg": 0}, [0, 1, 2]),
        ({"other/0.jpg": 5, "another/0.jpg": 1}, [2, 3, 4]),
    ],
)
def test_ids_are_those_of_the_annotations_or_of_no_image(program, ids, expected):
    paths = ["a/0.jpg", "b/1.jpg", "c/1.jpg"]
    assert program.image_ids(paths, ids) == expected
