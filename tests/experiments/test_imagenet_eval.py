"""The ImageNet evaluation program: defaults, results, bad input."""

import json

import pytest
from absl import flags

import sact_tf


def test_original_defaults(program):
    expected = dict(
        master="",
        checkpoint_dir="/tmp/resnet/",
        eval_dir="/tmp/resnet/",
        dataset_dir=None,
        eval_interval_secs=600,
        num_examples=50000,
        batch_size=32,
        split_name="validation",
        image_size=224,
        model="101",
        model_type="vanilla",
        tau=1.0,
        evaluate_once=False,
        moving_average_decay=0.9999,
    )
    assert {name: flags.FLAGS[name].default for name in expected} == expected


def test_every_image_counts_once(run_imagenet, tmp_path, capsys):
    model = sact_tf.imagenet_resnet("1_1_2_1", "sact", 3, base_channels=2)
    checkpoint = str(tmp_path / "model.ckpt-7")
    sact_tf.save_slim_checkpoint(model, checkpoint)
    options = dict(model_type="sact", checkpoint_dir=checkpoint, evaluate_once=True)
    run_imagenet(eval_dir=str(tmp_path), batch_size=5, **options)
    results = json.loads((tmp_path / "eval.json").read_text())
    assert results["num_examples"] == 12
    record = dict(
        program="imagenet_eval",
        version=1,
        checkpoint=checkpoint,
        global_step=0,
        model="1_1_2_1",
        model_type="sact",
        tau=1.0,
        base_channels=2,
        image_size=32,
        dataset="folder",
    )
    assert {name: results.get(name) for name in record} == record
    assert "baseline_of" not in results and results["block3/dead_units"] in (0, 1)
    # Two classes and the background are among the five likeliest.
    assert results["eval/Recall@5"] == 1 and 0 <= results["eval/Accuracy"] <= 1
    assert "block3/num_units_mean" in results
    assert "eval/Recall@5[1]" in capsys.readouterr().out
    run_imagenet(eval_dir=str(tmp_path), num_examples=7, image_size=48, **options)
    larger = json.loads((tmp_path / "eval.json").read_text())
    assert larger["num_examples"] == 7
    assert larger["Total Flops/mean"] > results["Total Flops/mean"]


def test_errors_name_the_flag(run_imagenet, tmp_path):
    options = dict(evaluate_once=True, eval_dir=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--checkpoint_dir=.*no checkpoint"):
        run_imagenet(checkpoint_dir=str(tmp_path / "nothing"), **options)
    with pytest.raises(ValueError, match="--dataset_dir=/nowhere: "):
        run_imagenet(dataset_dir="/nowhere", **options)
