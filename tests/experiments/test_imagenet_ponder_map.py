"""Maps of photographs."""

import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from PIL import Image

import sact_tf
from object_detection.feature_extractor import load_features
from sact_tf import visualization
from sact_tf.data import imagenet, inception


@pytest.fixture
def run(program, tmp_path):
    model = sact_tf.imagenet_resnet("1_1_2_1", "sact", 3, base_channels=2)
    options = dict(
        checkpoint_dir=sact_tf.save_slim_checkpoint(
            model, str(tmp_path / "model.ckpt")
        ),
        model="1_1_2_1",
        num_classes=3,
        base_channels=2,
        output_dir=str(tmp_path / "out"),
    )

    def run(**values):
        with flagsaver.flagsaver(**{**options, **values}):
            program.main()

    return run


def save(path, height, width, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, [height, width, 3])
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(path)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_original_defaults(program):
    expected = dict(
        model="101", checkpoint_dir="", images_pattern="", output_dir="", image_size=0
    )
    assert {name: flags.FLAGS[name].default for name in expected} == expected


@pytest.mark.long
def test_photographs_of_any_kind(run, tmp_path, capsys):
    save(tmp_path / "grey.jpg", 50, 70, "L")
    save(tmp_path / "alpha.png", 70, 40, "RGBA")
    save(tmp_path / "cmyk.jpg", 33, 33, "CMYK")
    save(tmp_path / "dot.png", 1, 1)
    save(tmp_path / "line.png", 10000, 20)
    run(images_pattern=str(tmp_path / "*.[jp]*g"))
    out = tmp_path / "out"
    assert len(list(out.iterdir())) == 5 * 6
    originals = {"grey_im.jpg", "grey_ponder.jpg", "grey_colorbar.pdf"}
    assert {path.name for path in out.glob("grey*")} - originals == {
        f"grey_{kind}.png" for kind in ("overlay", "figure", "blocks")
    }
    names = ("im.jpg", "ponder.jpg", "overlay.png")
    image, colours, both = (pixels(out / f"grey_{name}") for name in names)
    photograph = pixels(tmp_path / "grey.jpg")
    np.testing.assert_allclose(image, photograph, atol=3)  # JPEG decoders differ
    # What was written as JPEG can be had no nearer.
    image = inception.longer_edge(imagenet.read_image(str(tmp_path / "grey.jpg")), 0)
    image = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    model = sact_tf.imagenet_resnet("1_1_2_1", "sact", 3, base_channels=2)
    sact_tf.load_slim_checkpoint(model, str(tmp_path / "model.ckpt"))
    inputs = tf.constant(image[np.newaxis] / 127.5 - 1, tf.float32)
    _, end_points = model.with_end_points(inputs, training=False)
    expected = visualization.colour_map(visualization.sact_map(end_points)[0].numpy())
    np.testing.assert_array_equal(both, visualization.overlay(image, expected))
    visualization.save_picture(str(tmp_path / "expected.jpg"), expected)
    np.testing.assert_allclose(colours, pixels(tmp_path / "expected.jpg"), atol=1)
    assert len(np.unique(colours)) > 3
    assert capsys.readouterr().out.count("FLOPs") == 5
    run(images_pattern=str(tmp_path / "grey.jpg"), image_size=64)
    assert matplotlib.image.imread(out / "grey_ponder.jpg").shape[:2] == (45, 64)


def test_a_detector(run, tiny_detector, tmp_path, capsys):
    """Blocks 1 to 3 are drawn, and their operations told."""
    prefix, flags = tiny_detector
    options = {name: flags[name] for name in ("model", "base_channels")}
    save(tmp_path / "a.png", 42, 58)
    run(images_pattern=str(tmp_path / "a.png"), checkpoint_dir=prefix, **options)
    network = sact_tf.imagenet_resnet("1_2_1_1", "sact", 2, base_channels=2)
    features = load_features(network, prefix)
    image = np.asarray(Image.open(tmp_path / "a.png"))[np.newaxis]
    inputs = tf.constant(image / 127.5 - 1, tf.float32)
    _, end_points = features(inputs, tf.constant([[42, 58]]))
    expected = visualization.colour_map(visualization.sact_map(end_points)[0].numpy())
    drawn = np.asarray(Image.open(tmp_path / "out" / "a_ponder.jpg").convert("RGB"))
    visualization.save_picture(str(tmp_path / "expected.jpg"), expected)
    expected = np.asarray(Image.open(tmp_path / "expected.jpg").convert("RGB"))
    np.testing.assert_allclose(drawn, expected, atol=1)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1
    flops = int(end_points["flops"][0])
    assert f", {flops:.4g} FLOPs of blocks 1 to 3" in capsys.readouterr().out


def test_a_bad_file_does_not_stop_the_others(run, tmp_path, capsys):
    save(tmp_path / "a.jpg", 40, 40)
    save(tmp_path / "c.jpg", 40, 40)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"--images_pattern=.*: 1 of 3 files cannot"):
        run(images_pattern=str(tmp_path / "*.jpg"))
    assert "b.jpg: is cut off" in capsys.readouterr().err
    assert (tmp_path / "out" / "c_ponder.jpg").exists()


def test_errors_name_the_flag(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="--images_pattern=/x/.: matches no"):
        run(images_pattern="/x/*")
    with pytest.raises(ValueError, match="--checkpoint_dir: must be given"):
        run(checkpoint_dir="")
    save(tmp_path / "a.jpg", 40, 40)
    save(tmp_path / "a.png", 40, 40)
    with pytest.raises(ValueError, match="several files of the same name, such as a"):
        run(images_pattern=str(tmp_path / "a.*"))
