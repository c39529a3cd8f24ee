"""TF-Slim checkpoints to Keras files and back."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from absl.testing import flagsaver

import sact_tf


@pytest.fixture
def run(program):
    def run(**values):
        options = dict(network="cifar", model="1_2_1", model_type="sact", num_classes=3)
        with flagsaver.flagsaver(base_channels=2, **{**options, **values}):
            program.main()

    return run


@pytest.fixture
def checkpoint(tmp_path):
    model = sact_tf.cifar_resnet("1_2_1", "sact", 3, base_channels=2)
    return sact_tf.save_slim_checkpoint(model, str(tmp_path / "in" / "model.ckpt-7"), 7)


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5", "again.ckpt"])
def test_there_and_back(name, run, checkpoint, tmp_path, capsys):
    run(input=checkpoint, output=str(tmp_path / name))
    # A .keras file knows what it is, whatever the flags say.
    other = dict(model="3", model_type="act") if name.endswith(".keras") else {}
    back = str(tmp_path / "out" / "model.ckpt")
    run(input=str(tmp_path / name), output=back, **other)
    output = capsys.readouterr().out
    assert output.count("logits of a random image differ by 0\n") == 2
    readers = [tf.train.load_checkpoint(path) for path in (checkpoint, back)]
    for variable in readers[0].get_variable_to_shape_map():
        if variable != "global_step":
            values = [reader.get_tensor(variable) for reader in readers]
            np.testing.assert_array_equal(*values)


def test_a_conversion_that_changes_the_network_is_an_error(
    run, program, checkpoint, tmp_path, monkeypatch
):
    def spoil(model, path, step):
        model.classifier.bias.assign_add([0.0, 1e-3, 0.0])
        sact_tf.save_slim_checkpoint(model, path, step)
        model.classifier.bias.assign_sub([0.0, 1e-3, 0.0])

    monkeypatch.setattr(program, "save", spoil)
    with pytest.raises(ValueError, match="--output=.*differs from the input by 0.001"):
        run(input=checkpoint, output=str(tmp_path / "out.ckpt"))


def test_errors_name_the_flag(run, checkpoint, tmp_path):
    target = str(tmp_path / "out.keras")
    with pytest.raises(ValueError, match="--input: must be given"):
        run(input="", output=target)
    with pytest.raises(ValueError, match="--input=/nowhere: cannot be loaded"):
        run(input="/nowhere", output=target)
    with pytest.raises(ValueError, match="--input=.*does not fit the network"):
        run(input=checkpoint, output=target, model="2")
    (tmp_path / "bad.keras").write_bytes(b"PK")
    with pytest.raises(ValueError, match="--input=.*bad.keras: cannot be loaded"):
        run(input=str(tmp_path / "bad.keras"), output=target)
    with pytest.raises(ValueError, match="--output=.*exists already"):
        run(input=checkpoint, output=checkpoint)


def test_a_full_disk_leaves_nothing(run, checkpoint, tmp_path, no_file_larger_than):
    """Keras alone leaves a stub, or ends the process."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("a.keras", "a.weights.h5"):
        with no_file_larger_than(4000):
            with pytest.raises(OSError, match=rf"out/{name}: cannot be written \(File"):
                run(input=checkpoint, output=str(out / name))
        assert not list(out.iterdir())
        run(input=checkpoint, output=str(out / name))  # a rerun works
        assert [path.name for path in out.iterdir()] == [name]
        (out / name).unlink()


@pytest.mark.parametrize("kind", ["h5", "tf"])
def test_legacy_files_under_a_new_name(run, tmp_path, kind):
    """Keras would load them, and run code that they hold."""
    model = keras.Sequential([keras.layers.Lambda(lambda x: x + 1, input_shape=[3])])
    path = tmp_path / f"x.{kind}"
    model.save(path, save_format=kind)
    path.rename(tmp_path / "x.keras")
    with pytest.raises(
        ValueError, match=r"--input=.*x\.keras: cannot be loaded: .* is no"
    ):
        run(input=str(tmp_path / "x.keras"), output=str(tmp_path / "y.keras"))


@pytest.mark.long
def test_from_keras_applications(program, lively, tmp_path, capsys):
    source = lively(
        keras.applications.ResNet50V2(weights=None, input_shape=(64, 64, 3))
    )
    path = str(tmp_path / "source.h5")
    source.save_weights(path)
    options = dict(model="50", model_type="vanilla", num_classes=1001)
    output = str(tmp_path / "model.ckpt-0")
    with flagsaver.flagsaver(input=path, output=output, **options):
        with pytest.raises(ValueError, match="make it with stem_pool='zeros', downsam"):
            program.main()
        with flagsaver.flagsaver(stem_pool="zeros", downsample="input"):
            program.main()
    words = capsys.readouterr().out
    assert "logits of a random image differ from those of ResNet50V2 by" in words
    assert "1000 classes became 1001" in words
    model = sact_tf.imagenet_resnet("50", stem_pool="zeros", downsample="input")
    sact_tf.load_slim_checkpoint(model, output)
    np.testing.assert_array_equal(model.stem.kernel, source.weights[0])
