"""Copies of checkpoints without training state."""

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

import sact_tf
from sact_tf import training


def test_only_the_network_is_left(program, tiny_examples, tmp_path, capsys):
    model = sact_tf.cifar_resnet("1", num_classes=3, base_channels=2)
    training.train(model, tiny_examples, str(tmp_path / "log"), 1, 8, verbose=0)
    directories = dict(
        input_dir=str(tmp_path / "log"), output_dir=str(tmp_path / "small")
    )
    with flagsaver.flagsaver(**directories):
        program.main()
    assert "small/model.ckpt-1" in capsys.readouterr().out
    small = sact_tf.cifar_resnet("1", num_classes=3, base_channels=2)
    sact_tf.load_slim_checkpoint(small, directories["output_dir"])
    for a, b in zip(model.variables, small.variables):
        np.testing.assert_array_equal(a, b)
    names = [name for name, _ in tf.train.list_variables(directories["output_dir"])]
    assert "global_step" in names and not any("Momentum" in name for name in names)
    assert sact_tf.checkpoint_step(directories["output_dir"]) == 1


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(output_dir="x"), "--input_dir: must be given"),
        (dict(input_dir="x"), "--output_dir: must be given"),
        (dict(input_dir="/nowhere", output_dir="."), "--input_dir=/nowhere: "),
    ],
)
def test_errors_name_the_flag(program, tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    with flagsaver.flagsaver(**values), pytest.raises((ValueError, OSError)) as error:
        program.main()
    assert str(error.value).startswith(message)


def test_does_not_overwrite_the_checkpoint(program, tmp_path):
    model = sact_tf.cifar_resnet("1", num_classes=3, base_channels=2)
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-3"))
    both = dict(input_dir=str(tmp_path), output_dir=str(tmp_path))
    with flagsaver.flagsaver(**both), pytest.raises(ValueError, match="its|own"):
        program.main()
