"""The segmentation training program: stages, steering, resuming, bad input."""

import pytest
import tensorflow as tf
from absl.testing import flagsaver

import sact_tf

TINY = dict(
    dataset="shapes",
    num_examples=4,
    model="1_2_1_1",
    base_channels=2,
    head_channels=4,
    crop_height=32,
    crop_width=40,
    batch_size=2,
    max_number_of_steps=1,
)


@pytest.fixture
def run(program, tmp_path):
    """Returns a function that runs the program on a tiny network."""

    def run(**values):
        defaults = {**TINY, "train_log_dir": str(tmp_path / "log")}
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()

    return run


def test_stages(run, tmp_path, capsys):
    """A classification network, vanilla segmentation from it, and SACT from that."""
    network = sact_tf.imagenet_resnet("1_2_1_1", "vanilla", 5, base_channels=2)
    sact_tf.save_slim_checkpoint(network, str(tmp_path / "resnet" / "model.ckpt-0"))
    vanilla, sact = str(tmp_path / "vanilla"), str(tmp_path / "sact")
    run(
        finetune_path=str(tmp_path / "resnet"),
        train_log_dir=vanilla,
        class_weighting="log",
        optimizer="adam",
    )
    said = capsys.readouterr().out
    assert "shapes: 4 images, 11 classes" in said
    assert "Starting from" in said
    names = dict(tf.train.list_variables(vanilla))
    assert names["segmentation_head/logits/weights"] == [1, 1, 4, 11]
    assert "segmentation_head/fusion/conv/weights/optimizer/v" in names
    options = dict(
        model_type="sact",
        finetune_path=vanilla,
        train_log_dir=sact,
        target_relative_flops=0.9,
        tau=0.01,
    )
    run(**options)
    run(**{**options, "max_number_of_steps": 2})  # goes on
    said = capsys.readouterr().out
    assert f"Continuing from {sact}/model.ckpt-1 at step 1" in said
    assert "Relative operations of the last steps" in said
    assert sact_tf.checkpoint_step(sact) == 2
    assert "optimizer/tau_factor" in dict(tf.train.list_variables(sact))


@pytest.mark.long
def test_iterative_backbones_train(run, tmp_path):
    run(
        model_type="iterative",
        max_iterations=["1", "2", "1", "1"],
        model="50",
        train_log_dir=str(tmp_path / "iterative"),
    )
    names = dict(tf.train.list_variables(str(tmp_path / "iterative")))
    assert "iterative_net/stem/weights" in names


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(dataset="folders"), "--images: must be given"),
        (
            dict(dataset="folders", images="/nowhere", labels="/tmp"),
            "--images=/nowhere: images folder /nowhere does not exist",
        ),
        (dict(num_classes=5), "--dataset=shapes: has 11 classes; 5 are asked for"),
        (dict(class_names="sky,road"), "--class_names: class names must be 11"),
        (dict(min_scale=3.0), "--min_scale=3.0: scales must be the smallest"),
        (dict(model="7"), "--model=7: model must be .*'7'"),
        (dict(batch_size=9), "--batch_size=9: batch_size 9 is larger than the 4"),
        (dict(split_name="x"), "--split_name=x: split must be one of|split must be"),
        (dict(finetune_path="/nowhere"), "--finetune_path=/nowhere"),
        (dict(model_type="sact", group_grid=2), "--group_grid=2: must be 1"),
        (dict(expansion=2), "--expansion=2: needs --model_type=iterative"),
    ],
)
def test_errors_name_the_flag(refusal, tmp_path, values, message):
    import re

    said = refusal(**{**TINY, "train_log_dir": str(tmp_path / "log"), **values})
    assert re.match(message, said) and "\n" not in said.strip(), said


@pytest.mark.long
def test_killed_at_any_moment_it_goes_on(kill_training):
    values = {k: v for k, v in TINY.items() if k != "max_number_of_steps"}
    kill_training(save_summaries_secs=1000, **values)
