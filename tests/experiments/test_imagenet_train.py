"""The ImageNet training program: defaults, stages, resuming, bad input."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import sact_tf


def test_original_defaults(program):
    expected = dict(
        master="",
        train_log_dir="/tmp/resnet/",
        split_name="train",
        ps_tasks=0,
        save_summaries_secs=600,
        save_interval_secs=600,
        startup_delay_steps=15,
        task=0,
        dataset_dir=None,
        batch_size=32,
        learning_rate=0.05,
        momentum=0.9,
        learning_rate_decay_factor=0.1,
        num_epochs_per_decay=30.0,
        image_size=224,
        model="101",
        model_type="vanilla",
        tau=1.0,
        finetune_path="",
    )
    assert {name: flags.FLAGS[name].default for name in expected} == expected


def test_stages_of_the_paper(run_imagenet, tmp_path, capsys):
    """Ordinary network, SACT from it, resumed, and the baseline of its mean units."""
    vanilla, sact, baseline = (str(tmp_path / name) for name in "abc")
    run_imagenet(train_log_dir=vanilla, max_number_of_steps=2, learning_rate=1e-3)
    from_vanilla = dict(model_type="sact", tau=0.01, finetune_path=vanilla)
    options = dict(train_log_dir=sact, learning_rate=1e-6, **from_vanilla)
    run_imagenet(max_number_of_steps=1, **options)
    name = "resnet_v2/block3/unit_2/bottleneck_v2/conv2/weights"
    names = [n for n, _ in tf.train.list_variables(vanilla)]
    (name,) = [n for n in names if n.endswith(name.removeprefix("resnet_v2/"))]
    before, after = (tf.train.load_variable(p, name) for p in (vanilla, sact))
    np.testing.assert_allclose(before, after, atol=1e-3)
    run_imagenet(max_number_of_steps=2, **options)
    assert "at step 1" in capsys.readouterr().out
    assert sact_tf.checkpoint_step(sact) == 2

    units = {f"block{b}/num_units_mean": 1.2 for b in range(1, 5)}
    (tmp_path / "eval.json").write_text(json.dumps(units))
    run_imagenet(
        model="auto",
        units_from=str(tmp_path / "eval.json"),
        finetune_path=sact,
        train_log_dir=baseline,
        max_number_of_steps=1,
    )
    assert "per block: 1_1_1_1" in capsys.readouterr().out
    assert not any("unit_2" in n for n, _ in tf.train.list_variables(baseline))


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(dataset_dir="/nowhere"), "--dataset_dir=/nowhere: .*does not exist"),
        (dict(dataset_dir=None), r"--dataset_dir=\(default\): must name a directory"),
        (dict(model="auto"), "--model=auto: needs --units_from"),
        (dict(model="auto", units_from="/x.json"), "--units_from=/x.json: is no"),
        (dict(units_from="x.json"), "--units_from=x.json: needs --model=auto"),
        (dict(model="7"), "model must be .*'7'"),
        (dict(batch_size=64), "batch_size 64 is larger than the 12 examples"),
        (dict(train_log_dir="/proc/x"), "--train_log_dir=/proc/x: cannot be written"),
        (dict(finetune_path="/nowhere"), "/nowhere"),
    ],
)
def test_errors_name_the_flag(run_imagenet, tmp_path, values, message):
    log_dir = dict(train_log_dir=str(tmp_path / "log"))
    with pytest.raises((ValueError, OSError), match=message):
        run_imagenet(max_number_of_steps=1, **{**log_dir, **values})


def test_an_image_cut_off(run_imagenet, image_folder, tmp_path):
    path = image_folder / "cat" / "3.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="3.jpg is cut off"):
        run_imagenet(train_log_dir=str(tmp_path / "log"), max_number_of_steps=9)


@pytest.mark.parametrize(
    "cluster",
    [
        None,
        "{",
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_cluster_must_be_described(cluster, run_imagenet, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if cluster is not None:
        monkeypatch.setenv("TF_CONFIG", cluster)
    with pytest.raises(ValueError, match="parameter_server: .*TF_CONFIG, such as"):
        run_imagenet(distribution_strategy="parameter_server")


@pytest.mark.long  # as test_distribution, test_training and test_checkpoints
def test_killed_at_any_moment_it_goes_on(kill_training, image_folder):
    cut_off = []

    def cut_off_newest(log_dir):  # as by a full disk: the one before it is taken
        newest = tf.train.latest_checkpoint(log_dir)
        (data,) = log_dir.glob(f"{os.path.basename(newest)}.data-*")
        data.write_bytes(data.read_bytes()[:-100])
        assert sact_tf.checkpoint_step(log_dir) < int(newest.rpartition("-")[2])
        cut_off.append(os.path.basename(newest))

    errors = kill_training(
        checkpoints=2,
        damage=cut_off_newest,
        dataset="folder",
        dataset_dir=image_folder,
        image_size=32,
        model="1_1_2_1",
        base_channels=2,
        batch_size=4,
    )
    assert f"passing over {cut_off[0]}, which is incomplete" in errors
