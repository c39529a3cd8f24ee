"""The program that exports detectors."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from PIL import Image

import sact_tf

ALL = dict(score_threshold=0.0, max_detections=8)
SERVE = """
import sys
import numpy as np
import tensorflow as tf
path, photograph, implementation = sys.argv[1:]
if implementation == "native":
    import custom_ops
    custom_ops.load()
serve = tf.saved_model.load(path).signatures["serving_bytes"]
outputs = serve(
    image_bytes=tf.io.read_file(photograph)[tf.newaxis],
    score_threshold=tf.constant(0.0),
    max_detections=tf.constant(8),
)
np.savez(f"{path}.npz", **{name: value.numpy() for name, value in outputs.items()})
assert not {"sact_tf", "object_detection", "tf_keras", "official"} & set(sys.modules)
assert ("custom_ops" in sys.modules) == (implementation == "native")
"""


@pytest.fixture
def options(tiny_detector, tmp_path):
    """Flags of the exporting and the detecting program, and categories."""
    prefix, flags = tiny_detector
    content = dict(
        images=[dict(id=70, file_name="turned.jpg", width=36, height=50)],
        annotations=[],
        categories=[dict(id=9, name="dog"), dict(id=4, name="cat")],
    )
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return dict(
        flags,
        num_proposals=8,
        short_side=48,
        long_side=100,
        checkpoint_dir=os.path.dirname(prefix),
        categories=str(tmp_path / "truth.json"),
    )


@pytest.fixture
def photograph(tmp_path):
    """A photograph that its EXIF data say is to be turned to 36x50."""
    pixels = np.random.default_rng(0).integers(0, 256, [36, 50, 3]).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(pixels).save(path, "JPEG", exif=exif)
    return path


@pytest.fixture
def run(program, options, tmp_path):
    def run(**values):
        defaults = dict(options, output_dir=str(tmp_path / "out"))
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()

    return run


def rows(outputs):
    """Returns what was served of one image as coco_detect writes it."""
    count = int(outputs["num_detections"][0])
    found = []
    for k in range(count):
        ymin, xmin, ymax, xmax = outputs["detection_boxes"][0][k]
        category = {1: 4, 2: 9}[int(outputs["detection_classes"][0][k])]
        score = float(outputs["detection_scores"][0][k])
        found.append((category, [xmin, ymin, xmax - xmin, ymax - ymin], score))
    return found


def test_serves_what_the_detector_finds(run, photograph, tmp_path, capsys):
    run(max_detections=5, score_threshold=0.25)
    assert capsys.readouterr().out == f"Wrote {tmp_path / 'out'}\n"
    categories = tmp_path / "out" / "assets.extra" / "categories.json"
    names = [category["name"] for category in json.loads(categories.read_text())]
    assert names == ["cat", "dog"]
    loaded = tf.saved_model.load(str(tmp_path / "out"))
    served = loaded.serve_bytes(tf.constant([photograph.read_bytes()]))
    assert served["detection_boxes"].shape == [1, 5, 4]
    count = int(served["num_detections"][0])
    assert count and np.all(served["detection_scores"][0, :count] >= 0.25)
    assert served["ponder_cost_map"].shape == [1, 67, 48, 1]
    boxes = served["detection_boxes"][0].numpy()
    assert np.all(boxes <= [50.01, 36.01, 50.01, 36.01]) and boxes.max() > 36


@pytest.mark.long
@pytest.mark.parametrize(
    "execution, implementation, tile_size",
    [
        ("masked", "tensorflow", 1),
        ("perforated", "tensorflow", 1),
        ("perforated", "native", 1),
        ("tiled", "tensorflow", 2),
    ],
)
def test_serves_elsewhere_what_coco_detect_finds(
    run, options, photograph, tmp_path, execution, implementation, tile_size
):
    """In a process that has TensorFlow alone, or beside it the compiled kernels."""
    run(execution=execution, implementation=implementation, tile_size=tile_size, **ALL)
    arguments = [str(tmp_path / "out"), str(photograph), implementation]
    here = None if implementation == "native" else str(tmp_path)
    subprocess.run([sys.executable, "-c", SERVE, *arguments], check=True, cwd=here)
    served = rows(np.load(tmp_path / "out.npz"))
    flags = dict(
        options,
        **ALL,
        tile_size=tile_size,
        images_pattern=str(photograph),
        output_dir=str(tmp_path / "drawn"),
    )
    command = [sys.executable, "-m", "experiments.coco_detect"]
    for name, value in flags.items():
        value = ",".join(value) if isinstance(value, list) else value
        command.append(f"--{name}={value}")
    subprocess.run(command, check=True)
    found = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    assert len(found) == len(served) == 8
    for row, (category, box, score) in zip(found, served):
        assert row["category_id"] == category
        np.testing.assert_allclose(row["bbox"], box, atol=2e-3)
        np.testing.assert_allclose(row["score"], score, atol=1e-4)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(checkpoint_dir=""), "--checkpoint_dir: must be given"),
        (dict(checkpoint_dir="/nowhere"), "--checkpoint_dir=/nowhere: holds no"),
        (dict(output_dir=""), "--output_dir: must be given"),
        (dict(output_dir="/proc"), "--output_dir=/proc: cannot be written"),
        (dict(categories=""), "--categories or --num_classes: one must be given"),
        (dict(short_side=200), "--short_side=200: must be at most --long_side, 100"),
        (dict(execution="tiled"), "tile_size must be an integer >= 2"),
    ],
)
def test_errors_name_the_flag(run, values, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(**values)


def test_the_directory_must_be_empty(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with pytest.raises(ValueError, match="--output_dir=.*out: must be empty"):
        run()


def test_checkpoint_of_a_classification_network(refusal, options, tmp_path):
    model = sact_tf.imagenet_resnet("1_2_1_1", "sact", 3, base_channels=2)
    path = sact_tf.save_slim_checkpoint(model, str(tmp_path / "c" / "model.ckpt-7"), 7)
    output_dir = str(tmp_path / "out")
    message = refusal(**{**options, "checkpoint_dir": path, "output_dir": output_dir})
    assert message.startswith(f"--checkpoint_dir={path}: checkpoint {path} is that of")
    assert "export_saved_model take it" in message and "\n" not in message
    assert not os.listdir(output_dir)
