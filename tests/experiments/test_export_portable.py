"""The program that writes TensorFlow Lite and ONNX files."""

import sys

import pytest
import tensorflow as tf
from absl.testing import flagsaver

import sact_tf


@pytest.fixture
def run(program, tmp_path):
    model = sact_tf.cifar_resnet("1", "sact", 3, base_channels=2)
    checkpoint = sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt"))

    def run(output_file, **values):
        options = dict(
            network="cifar",
            model="1",
            model_type="sact",
            num_classes=3,
            base_channels=2,
            checkpoint_dir=checkpoint,
            output_file=str(output_file),
        )
        with flagsaver.flagsaver(**{**options, **values}):
            program.main()

    return run


def test_writes_both_kinds(run, tmp_path, capsys):
    run(tmp_path / "out" / "net.tflite", image_size=40, batch_size=3)
    interpreter = tf.lite.Interpreter(str(tmp_path / "out" / "net.tflite"))
    (images,) = interpreter.get_input_details()
    assert list(images["shape"]) == [3, 40, 40, 3]
    pytest.importorskip("tf2onnx")
    run(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").stat().st_size > 1000
    assert "net.onnx, 0." in capsys.readouterr().out


def test_errors_name_the_flag(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--output_file=.*must end in .tflite or"):
        run(tmp_path / "net.pb")
    with pytest.raises(ValueError, match="--execution=perforated: must be masked"):
        run(tmp_path / "net.tflite", execution="perforated")
    with pytest.raises(FileNotFoundError, match="no readable .* /nowhere"):
        run(tmp_path / "net.onnx", checkpoint_dir="/nowhere")
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ValueError, match="--output_file=.*needs the package tf2onnx"):
        run(tmp_path / "net.onnx")


@pytest.mark.long
def test_a_full_disk_leaves_what_was_there(run, tmp_path, no_file_larger_than):
    path = tmp_path / "out" / "net.tflite"
    path.parent.mkdir()
    path.write_bytes(b"before")
    with no_file_larger_than(2000):
        with pytest.raises(OSError, match=r"net\.tflite: cannot be written \(File too"):
            run(path, image_size=32)
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in path.parent.iterdir()] == ["net.tflite"]
    run(path, image_size=32)
    assert path.stat().st_size > 2000
