"""The CIFAR program: runs, results, resuming after a kill, bad input."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import sact_tf
from experiments.common import cifar_recipe, programs
from sact_tf.data import shapes


@pytest.fixture
def run(program):
    """Returns a function that runs the program in this process with the given flags."""

    def run(**values):
        with flagsaver.flagsaver(**{"model": "1", **values}):
            program.main()

    return run


def directories(tmp_path):
    return dict(
        train_log_dir=str(tmp_path / "log"),
        checkpoint_dir=str(tmp_path / "log"),
        eval_dir=str(tmp_path / "eval"),
    )


def test_original_defaults(program):
    expected = dict(
        mode="train",
        batch_size=128,
        master="",
        train_log_dir="/tmp/resnet_act_cifar/",
        checkpoint_dir="/tmp/resnet_act_cifar/",
        eval_dir="/tmp/resnet_act_cifar/",
        save_summaries_secs=30,
        save_interval_secs=60,
        max_number_of_steps=100000,
        ps_tasks=0,
        task=0,
        dataset_dir=None,
        eval_batch_size=100,
        eval_interval_secs=60,
        split_name="test",
        evaluate_once=False,
        model_type="vanilla",
        tau=1.0,
        model="5",
        finetune_path="",
        halting_bias=-3.0,
        units_from="",
    )
    assert {name: flags.FLAGS[name].default for name in expected} == expected


@pytest.mark.parametrize(
    "model_type", ["vanilla", pytest.param("act", marks=pytest.mark.long), "sact"]
)
def test_trains_and_evaluates(model_type, run, write_cifar, tmp_path, capsys):
    options = dict(
        dataset_dir=str(write_cifar()),
        model_type=model_type,
        tau=0.01,
        **directories(tmp_path),
    )
    run(mode="train", batch_size=8, max_number_of_steps=2, **options)
    assert sact_tf.checkpoint_step(tmp_path / "log") == 2
    run(mode="eval", evaluate_once=True, eval_batch_size=10, **options)
    output = capsys.readouterr().out
    results = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert results["global_step"] == 2 and results["num_examples"] == 24
    printed = dict(re.findall(r"^(\S.*)\[(.+)\]$", output, re.M))
    for name in (
        "eval/Accuracy",
        "eval/Mean Loss",
        "Total Flops/mean",
        "Total Flops/std",
    ):
        np.testing.assert_allclose(float(printed[name]), results[name], rtol=1e-6)
    assert ("block_3/ponder_cost_mean" in printed) is (model_type != "vanilla")
    assert list((tmp_path / "eval").glob("events*"))


def test_fine_tunes_from_a_vanilla_network(run, write_cifar, tmp_path):
    options = dict(dataset_dir=str(write_cifar()), batch_size=8, mode="train")
    vanilla, sact = str(tmp_path / "vanilla"), str(tmp_path / "sact")
    run(train_log_dir=vanilla, max_number_of_steps=2, **options)
    # A rate of 0.1 moves weights by little in one step from there, by a lot from
    # elsewhere.
    run(
        train_log_dir=sact,
        finetune_path=vanilla,
        model_type="sact",
        max_number_of_steps=1,
        **options,
    )
    name = "resnet_residual/block_3/unit_1/residual/conv2/weights"
    before, after = (tf.train.load_variable(path, name) for path in (vanilla, sact))
    assert np.linalg.norm(after - before) < 0.3 * np.linalg.norm(before)


def test_baseline_of_as_many_units(run, write_cifar, tmp_path, capsys):
    """Its units are the adaptive network's mean, its first weights those of another."""
    deep = str(tmp_path / "deep")
    sact_tf.save_slim_checkpoint(
        sact_tf.cifar_resnet("2"), f"{deep}/model.ckpt-1", global_step=1
    )
    units = {f"block_{b}/num_units_mean": mean for b, mean in ((1, 1.6), (2, 1.2))}
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({**units, "block_3/num_units_mean": 0.4}))
    options = dict(
        dataset_dir=str(write_cifar()),
        model="auto",
        units_from=str(path),
        **directories(tmp_path),
    )
    run(batch_size=8, max_number_of_steps=1, finetune_path=deep, **options)
    output = capsys.readouterr().out
    assert "Residual units per block: 2_1_1" in output and "Starting from" in output
    names = {name for name, _ in tf.train.list_variables(str(tmp_path / "log"))}
    assert any("/block_1/unit_2/" in name for name in names)
    assert not any("/block_3/unit_2/" in name for name in names)
    run(mode="eval", evaluate_once=True, **options)
    results = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert results["model"] == "2_1_1" and results["baseline_of"] == ""


def test_shapes_need_no_files(program, run, tmp_path, monkeypatch):
    monkeypatch.setitem(program.shapes.SPLIT_SIZES, "train", 16)
    run(
        mode="train",
        dataset="shapes",
        batch_size=8,
        max_number_of_steps=1,
        **directories(tmp_path),
    )
    assert sact_tf.checkpoint_step(tmp_path / "log") == 1


def test_continuous_evaluation_follows_new_checkpoints(
    program, run, write_cifar, tmp_path, monkeypatch, capsys
):
    model = sact_tf.cifar_resnet("1")
    directory = tmp_path / "log"
    saved = []

    def sleep(seconds):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(len(saved) + 1)
        sact_tf.save_slim_checkpoint(model, str(directory / f"model.ckpt-{saved[-1]}"))

    monkeypatch.setattr(program.evaluating.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        run(mode="eval", dataset_dir=str(write_cifar()), **directories(tmp_path))
    output = capsys.readouterr().out
    assert output.count("Waiting") == 1 and output.count("Evaluated") == 2


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(dataset_dir="/nowhere"), "--dataset_dir=/nowhere: .*does not exist"),
        (dict(model="5_x"), "model must be .*'5_x'"),
        (dict(model="1_2"), "model must be .*'1_2'"),
        (dict(model="auto"), "--model=auto: needs --units_from"),
        (dict(units_from="x.json"), "--units_from=x.json: needs --model=auto"),
        (dict(model="auto", units_from="/x.json"), "--units_from=/x.json: is no"),
        (dict(train_log_dir="/proc/x"), "--train_log_dir=/proc/x: cannot be written"),
        (
            dict(learning_rate_boundaries=["3", "x", "5"]),
            "--learning_rate_boundaries=3,x,5: must be 3 increasing steps",
        ),
        (
            dict(finetune_path="/nowhere/x"),
            "no readable TF-Slim checkpoint at /nowhere/x",
        ),
        (
            dict(mode="eval", evaluate_once=True, checkpoint_dir="/nowhere/ckpt"),
            "/nowhere/ckpt",
        ),
    ],
)
def test_bad_values_are_named(values, message, run, write_cifar, tmp_path):
    options = {"dataset_dir": str(write_cifar()), **directories(tmp_path), **values}
    with pytest.raises(programs.USER_ERRORS, match=message):
        run(**options)


def test_checkpoint_of_another_architecture(run, write_cifar, tmp_path):
    model = sact_tf.cifar_resnet("2", "sact")
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "log" / "model.ckpt-1"), 1)
    options = dict(
        dataset_dir=str(write_cifar()), batch_size=8, **directories(tmp_path)
    )
    for values in (dict(mode="eval", evaluate_once=True), dict(mode="train")):
        with pytest.raises(sact_tf.CheckpointMismatchError, match="does not fit"):
            run(**values, **options)
    assert sact_tf.checkpoint_step(tmp_path / "log") == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model_type=sct"], "model_type.*sact"),
        (["--tau=-1"], "tau.*-1"),
        (["--dataset_dir=/nowhere"], "--dataset_dir=/nowhere"),
        (["stray"], "unknown argument 'stray'"),
    ],
)
def test_one_line_and_a_non_zero_exit(arguments, message, start, tmp_path):
    process = start(*arguments, train_log_dir=tmp_path / "log")
    _, errors = process.communicate()
    assert process.returncode != 0
    assert re.search(message, errors) and "Traceback" not in errors


@pytest.mark.long  # test_distribution kills this program too
def test_killed_at_any_moment_it_goes_on(kill_training, write_cifar):
    kill_training(dataset_dir=write_cifar(), model="1", batch_size=8)


@pytest.mark.parametrize(
    "steps", [["-3", "5", "7"], ["0", "5", "7"], ["1", "nan", "3"], ["1", "2", "1e30"]]
)
def test_boundaries_that_cannot_be(refusal, tmp_path, steps):
    message = refusal(train_log_dir=str(tmp_path), learning_rate_boundaries=steps)
    start = (
        f"--learning_rate_boundaries={','.join(steps)}: must be 3 increasing steps >="
    )
    assert message.startswith(start)


def test_pact_is_evaluated_in_all_modes(run, write_cifar, tmp_path, capsys):
    """With every flag of it."""
    options = dict(
        dataset_dir=str(write_cifar()),
        model="2_1_1",
        base_channels=2,
        model_type="pact",
        group_grid=4,
        estimator="reinforce",
        temperature=0.5,
        test_mode="discrete",
        baseline="linear",
        **directories(tmp_path),
    )
    run(mode="train", batch_size=8, max_number_of_steps=1, **options)
    evaluation = dict(mode="eval", evaluate_once=True, eval_batch_size=12)
    run(num_samples=2, write_images=True, **evaluation, **options)
    results = json.loads((tmp_path / "eval" / "eval.json").read_text())
    printed = capsys.readouterr().out
    for name in (
        "relaxed/Accuracy",
        "relaxed/Log Loss",
        "relaxed/Expected Flops",
        "discrete/Accuracy std",
        "discrete/Flops std",
        "thresholded/Flops",
    ):
        assert f"{name}[" in printed and name in results
    assert results["discrete/Flops std"] > 0
    assert results["relaxed/Flops"] >= results["discrete/Flops"]
    with np.load(tmp_path / "eval" / "images.npz") as images:
        np.testing.assert_allclose(
            images["thresholded/Flops"].mean(), results["thresholded/Flops"]
        )
        assert len(images["relaxed/Accuracy"]) == 24


def test_heads_of_another_rule_are_mentioned(program, tmp_path, capsys):
    sact, pact = (
        sact_tf.cifar_resnet("2_1_1", kind, base_channels=1)
        for kind in ("sact", "pact")
    )
    path = sact_tf.save_slim_checkpoint(sact, str(tmp_path / "sact"))
    for fresh, words in (
        (True, "not taken, and start fresh"),
        (False, "PACT's chance"),
    ):
        with flagsaver.flagsaver(finetune_path=path):
            programs.start_from_finetune_path(
                str(tmp_path / "none"),
                lambda path, fresh=fresh: sact_tf.load_slim_checkpoint(
                    pact, path, fresh_halting=fresh
                ),
            )
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(temperature=0.0), "--temperature=0.0: must be a finite number > 0"),
        (dict(temperature=float("nan")), "--temperature=nan: must be a finite number"),
        (
            dict(group_grid=5),
            "--group_grid=5: must divide the maps of all blocks, whose "
            "sides are 32, 16, 8",
        ),
        (dict(model_type="sact", temperature=1.0), "temperature"),
        (
            dict(model_type="act", group_grid=2),
            "--group_grid=2: group_grid must be None",
        ),
        (dict(estimator="relaxation", model_type="vanilla"), "estimator"),
    ],
)
def test_bad_options_of_pact_are_named(values, message, refusal, tmp_path):
    values = {"model_type": "pact", "model": "1", "base_channels": 1, **values}
    assert message in refusal(train_log_dir=str(tmp_path / "log"), **values)


def iterative(**values):
    return dict(
        model="5",
        model_type="iterative",
        max_iterations=["1", "2", "1", "1"],
        base_channels=2,
        **values,
    )


@pytest.mark.long
def test_trains_and_evaluates_iterative_networks(run, write_cifar, tmp_path):
    options = iterative(dataset_dir=str(write_cifar()), **directories(tmp_path))
    run(batch_size=8, max_number_of_steps=1, save_summaries_secs=1e6, **options)
    assert sact_tf.checkpoint_step(tmp_path / "log") == 1
    run(mode="eval", evaluate_once=True, eval_batch_size=24, **options)
    results = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert results["model_type"] == "iterative" and results["model"] == "1_2_1_1"
    assert results["expansion"] == 1 and results["tau"] == 0.001
    macs = [results[f"Total Macs/{key}"] for key in ("min", "mean", "max")]
    assert macs == sorted(macs) and macs[0] > results["Total Flops/mean"] / 2


@pytest.fixture
def untrained(tmp_path):
    """Saves a tiny iterative network, whose gates do as they like."""
    model = sact_tf.iterative_net(
        "iterative", (1, 2, 1, 1), num_classes=10, stem="cifar", base_channels=2
    )
    gate = model.blocks[1].heads[0]
    gate.score.kernel.assign(np.random.default_rng(1).normal(0, 9, [1, 1, 64, 1]))
    gate.score.bias.assign([0.0])
    sact_tf.save_slim_checkpoint(model, str(tmp_path / "log" / "model.ckpt-3"), 3)


def test_iterations_are_drawn(run, untrained, write_cifar, tmp_path, capsys):
    options = iterative(dataset_dir=str(write_cifar()), **directories(tmp_path))
    evaluation = dict(mode="eval", evaluate_once=True, eval_batch_size=10)
    options.update(draw_iterations=True, time_images=2, execution="perforated")
    run(**evaluation, **options)
    results = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert results["execution"] == "perforated" and results["parameters"] > 0
    assert 0 < results["Seconds per Image/median"] < 60
    rows = json.loads((tmp_path / "eval" / "iterations.json").read_text())
    assert sum(row["images"] for row in rows) == 24
    wrong = sum(row["images"] * row["error"] for row in rows)
    np.testing.assert_allclose(1 - wrong / 24, results["eval/Accuracy"])
    assert {row["iterations"] for row in rows} <= {4, 5}
    for name in ("iterations.png", "iterations_images.png"):
        assert (tmp_path / "eval" / name).stat().st_size > 1000
    assert "iterations: " in capsys.readouterr().out


def test_iterations_need_images_that_halt(run, write_cifar, tmp_path):
    path = str(tmp_path / "log" / "model.ckpt-1")
    sact_tf.save_slim_checkpoint(sact_tf.cifar_resnet("1", base_channels=1), path, 1)
    options = dict(dataset_dir=str(write_cifar()), mode="eval", evaluate_once=True)
    with pytest.raises(ValueError, match="--draw_iterations: needs a network whose"):
        run(draw_iterations=True, base_channels=1, **options, **directories(tmp_path))


def test_training_runs_masked(run, tmp_path):
    with pytest.raises(ValueError, match="--execution=perforated: needs --mode=eval"):
        run(execution="perforated", train_log_dir=str(tmp_path))


@pytest.mark.parametrize(
    "values, recipe",
    [
        ({}, "sact"),
        ({"recipe": "iterative"}, "iterative"),
        (iterative(), "iterative"),
        (iterative(recipe="sact"), "sact"),
        ({"network": "cifar_bottleneck"}, "iterative"),
    ],
)
def test_recipes(program, values, recipe):
    examples = shapes.load("test", 32, num_examples=1)
    with flagsaver.flagsaver(**values):
        assert cifar_recipe.augmented(examples).crop_padding == 2 * (recipe == "sact")
        rate = float(cifar_recipe.learning_rate()(0))
        assert rate == pytest.approx(0.1 if recipe == "sact" else 0.01)


@pytest.mark.parametrize("kind", ["cosine", "one_cycle"])
def test_smooth_schedules(program, kind):
    values = dict(learning_rate_schedule=kind, max_number_of_steps=40)
    with flagsaver.flagsaver(**values, learning_rate=0.3):
        rate = cifar_recipe.learning_rate()
        assert float(rate(10 if kind == "one_cycle" else 0)) == pytest.approx(0.3)
        assert float(rate(40)) == pytest.approx(0, abs=1e-7)
    with flagsaver.flagsaver(**values, learning_rate_boundaries=["1", "2", "3"]):
        with pytest.raises(ValueError, match="--learning_rate_boundaries=1,2,3: needs"):
            cifar_recipe.learning_rate()


def test_networks_of_bottleneck_units(program):
    values = dict(network="cifar_bottleneck", model="2", base_channels=2)
    with flagsaver.flagsaver(**values):
        network = program.make_model(10)
    assert isinstance(network, sact_tf.CifarBottleneckResNet)
    assert network.options.model == "2_2_2_2"
    with flagsaver.flagsaver(**iterative(network="cifar_bottleneck")):
        with pytest.raises(ValueError, match="--network=cifar_bottleneck: must be"):
            program.make_model(10)


@pytest.mark.long
def test_iterative_networks_go_on(run, write_cifar, tmp_path):
    options = iterative(dataset_dir=str(write_cifar()), **directories(tmp_path))
    for steps in (1, 2):
        run(batch_size=8, max_number_of_steps=steps, **options)
        assert sact_tf.checkpoint_step(tmp_path / "log") == steps
    # What does not fit is refused in one line, and nothing is lost.
    before = sorted(path.name for path in (tmp_path / "log").glob("model.ckpt*"))
    for other in ({"max_iterations": ["1", "3", "1", "1"]}, {"expansion": 2}):
        with pytest.raises(
            ValueError, match="this one has .*max_iterations=1"
        ) as error:
            run(batch_size=8, max_number_of_steps=2, **{**options, **other})
        assert "\n" not in str(error.value)
    after = sorted(path.name for path in (tmp_path / "log").glob("model.ckpt*"))
    assert after == before
    other = {**options, "train_log_dir": str(tmp_path / "other")}
    path = str(tmp_path / "log")
    run(batch_size=8, max_number_of_steps=1, finetune_path=path, **other)


@pytest.mark.parametrize(
    "values, message",
    [
        (iterative(expansion=5), "expansion must be an integer from 1 to 4; got 5"),
        (
            {**iterative(), "max_iterations": ["1", "0", "1", "1"]},
            "max_iterations must be 4 integers from 1 to 1000.*got '1,0,1,1'",
        ),
        ({**iterative(), "model": "3"}, "--model=3: needs --model_type=another"),
        ({"double": True}, "--double=True: needs --model_type=iterative or iamnn"),
        (
            iterative(learning_rate_boundaries=["1", "2", "3"]),
            "--learning_rate_boundaries=1,2,3: must be 2 increasing steps",
        ),
    ],
)
def test_flags_of_iterative_networks_are_checked(run, values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(train_log_dir=str(tmp_path), **values)
