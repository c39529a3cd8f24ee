"""The ImageNet training program: defaults, stages, resuming, bad input."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

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
        worker_replicas=1,
        replicas_to_aggregate=1,
        moving_average_decay=0.9999,
        halting_bias=-3.0,
        train_batch_norm=True,
        execution="masked",
    )
    assert {name: flags.FLAGS[name].default for name in expected} == expected


def test_flags_without_effect_say_so(refusal, capsys):
    refusal(
        worker_replicas=50,
        replicas_to_aggregate=50,
        moving_average_decay=0.999,
        train_log_dir="/proc/x",
    )
    notes = capsys.readouterr().out.splitlines()
    names = ("worker_replicas", "replicas_to_aggregate", "moving_average_decay")
    for note, name in zip(notes, names, strict=True):
        assert note.startswith(f"Note: --{name} has no effect: ")


@pytest.mark.long
def test_stages_of_the_paper(run_imagenet, tmp_path, capsys):
    """Ordinary network, SACT from it, resumed, and the baseline of its mean units."""
    vanilla, sact, baseline = (str(tmp_path / name) for name in "abc")
    run_imagenet(train_log_dir=vanilla, max_number_of_steps=2, learning_rate=1e-3)
    from_vanilla = dict(
        model_type="sact", tau=0.01, finetune_path=vanilla, halting_bias=-1.5
    )
    options = dict(train_log_dir=sact, learning_rate=1e-6, **from_vanilla)
    run_imagenet(max_number_of_steps=1, **options)
    name = "resnet_v2/block3/unit_2/bottleneck_v2/conv2/weights"
    names = [n for n, _ in tf.train.list_variables(vanilla)]
    (name,) = [n for n in names if n.endswith(name.removeprefix("resnet_v2/"))]
    before, after = (tf.train.load_variable(p, name) for p in (vanilla, sact))
    np.testing.assert_allclose(before, after, atol=1e-3)
    (name,) = [
        n
        for n, _ in tf.train.list_variables(sact)
        if n.endswith("block3/unit_1/halting_proba/local_conv/biases")
    ]
    np.testing.assert_allclose(tf.train.load_variable(sact, name), -1.5, atol=1e-3)
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
        (dict(execution="perforated"), "--execution=perforated: must be masked with"),
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


@pytest.mark.parametrize(
    "flag, value, expected",
    [
        ("learning_rate", float("nan"), "=nan: must be a finite number"),
        ("learning_rate", float("inf"), "=inf: must be a finite number"),
        ("save_interval_secs", float("nan"), "=nan: must be a finite number"),
        ("save_summaries_secs", float("inf"), "=inf: must be a finite number"),
        ("num_epochs_per_decay", 0.0, "=0.0: must be a finite number > 0"),
        ("momentum", float("nan"), "=nan: must be a finite number"),
        ("tau", float("nan"), "=nan: must be a finite number"),
        ("image_size", 10**6, "=1000000: must be an integer from 0 to 8192"),
        ("base_channels", 10**7, "=10000000: must be an integer from 1 to 1024"),
        ("batch_size", 10**12, "=1000000000000: must be an integer from 1 to 65536"),
        ("seed", 2**70, "=1180591620717411303424: must be an integer from 0 to 42949"),
        ("seed", -1, "=-1: must be an integer from 0 to 4294967295"),
        ("max_number_of_steps", 2**64, "must be an integer >= 1 within 64 bits"),
        ("startup_delay_steps", 2**64, "must be an integer within 64 bits"),
        (
            "model",
            "1000000000",
            "must have at most 1000 residual units per block",
        ),
        ("model", "3_4_1001_3", "must have at most 1000 residual units per block"),
    ],
)
def test_numbers_that_cannot_be(refusal, flag, value, expected):
    """Flag, value and what is accepted, before anything is built or written."""
    message = refusal(train_log_dir="/nowhere/log", **{flag: value})
    assert message.startswith(f"--{flag}={value}"[:40]) and "\n" not in message
    assert expected in message


@pytest.mark.parametrize(
    "content, expected",
    [
        ("[", "is no JSON file"),
        ("[" * 100000, "is no JSON file (nested too deeply)"),
        ("null", "it is null, which has no 'block1/num_units_mean'"),
        ("{}", "it has no 'block1/num_units_mean'"),
        *(
            (
                f'{{"block1/num_units_mean": {value}}}',
                f"has block1/num_units_mean {shown}",
            )
            for value, shown in (
                *(("null", "null"), ('"3"', "'3'"), ("NaN", "nan"), ("[2]", "[2]")),
                *(
                    ("Infinity", "inf"),
                    ("1e30", "1e+30"),
                    ("-1", "-1"),
                    ("true", "True"),
                ),
            )
        ),
    ],
)
def test_units_from_what_is_no_evaluation(refusal, tmp_path, content, expected):
    path = tmp_path / "eval.json"
    path.write_text(content)
    message = refusal(
        model="auto",
        units_from=str(path),
        dataset="shapes",
        train_log_dir=str(tmp_path),
    )
    assert (
        message.startswith(f"--units_from={path}: is no eval.json")
        and "\n" not in message
    )
    assert expected in message


def test_units_from_a_directory(refusal, tmp_path):
    message = refusal(
        model="auto",
        units_from=str(tmp_path),
        dataset="shapes",
        train_log_dir=str(tmp_path),
    )
    assert "cannot be read (Is a directory)" in message


def test_finetuning_for_other_classes(program, refusal, image_folder, tmp_path):
    from experiments.common import programs

    options = dict(model_type="vanilla", num_classes=7, base_channels=2)
    source = sact_tf.imagenet_resnet("1_1_2_1", **options)
    path = str(tmp_path / "source.keras")
    source.save(path)
    message = refusal(
        dataset="folder",
        dataset_dir=str(image_folder),
        image_size=32,
        model="1_1_2_1",
        base_channels=2,
        model_type="vanilla",
        batch_size=4,
        finetune_path=path,
        train_log_dir=str(tmp_path / "log"),
    )
    assert message.startswith(f"--finetune_path={path}: ")
    assert "7 classes, the network has 3" in message
    assert message.endswith("--finetune_without_classifier")
    model = sact_tf.imagenet_resnet("1_1_2_1", **{**options, "num_classes": 3})
    with flagsaver.flagsaver(finetune_without_classifier=True):
        names = programs.load_weights(model, path)
    assert names and not any("logits" in name for name in names)
    np.testing.assert_array_equal(model.stem.kernel, source.stem.kernel)


@pytest.mark.long
def test_iterative_networks_train_and_go_on(run_imagenet, tmp_path):
    options = dict(
        model="101",
        model_type="iamnn",
        max_iterations=["1", "2", "1", "1"],
        train_log_dir=str(tmp_path / "log"),
    )
    for steps in (1, 2):
        run_imagenet(max_number_of_steps=steps, **options)
        assert sact_tf.checkpoint_step(tmp_path / "log") == steps
    names = {name for name, _ in tf.train.list_variables(str(tmp_path / "log"))}
    assert any("iterative_net/block_2/unit_1/" in name for name in names)
