"""The program that packs trained networks, and the records that it reads."""

import json
import os
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import sact_tf
from experiments.common import evaluating, recipes, run_record
from object_detection.faster_rcnn import FasterRCNN
from sact_tf import zoo
from sact_tf.data import shapes
from sact_tf.networks.recurrent_attention import recurrent_attention
from sact_tf.zoo import cards, files, kinds

FLAGS_OF_RUN = ["--dataset=shapes", "--image_size=16", "--train_log_dir=/x/y"]
RECIPE = "# python -m experiments.cifar_main\n--dataset=shapes\n--image_size=16\n"


def evaluate(model, checkpoint, eval_dir):
    """Evaluates as cifar_main does, on few images."""
    os.makedirs(eval_dir, exist_ok=True)
    evaluating.evaluate_checkpoint(
        model,
        shapes.load("test", 16, 40),
        checkpoint,
        eval_dir,
        dict(program="cifar_main", image_size=16, dataset="shapes", split_name="test"),
        batch_size=40,
    )
    return os.path.join(eval_dir, "eval.json")


@pytest.fixture
def run(program, tmp_path, lively, monkeypatch):
    """A run with its checkpoint, run.json and eval.json; returns a packing function."""
    model = lively(sact_tf.cifar_resnet("2", "sact", base_channels=2, tau=0.1))
    prefix = str(tmp_path / "run" / "model.ckpt-7")
    sact_tf.save_slim_checkpoint(model, prefix, 7)
    writer = tf.summary.create_file_writer(str(tmp_path / "run"))
    with writer.as_default(1):
        tf.summary.scalar("x", 1.0)
    writer.close()
    record = {
        "version": 1,
        "program": "cifar_main",
        "flags": FLAGS_OF_RUN,
        "commit": "abcdef",
        "machine": "a processor, 2 cores",
    }
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    (tmp_path / "sact-shapes64.flags").write_text(RECIPE)
    monkeypatch.setattr(recipes, "DIRECTORY", str(tmp_path))
    path = evaluate(model, prefix, str(tmp_path / "run" / "eval"))

    # That a process does it is a test of its own, and what it finds another.
    monkeypatch.setattr(program, "evaluate_again", lambda row, checkpoint, work: row)

    def pack(**values):
        with flagsaver.flagsaver(**{**pack.options, **values}):
            program.main()
        return str(tmp_path / "zoo" / "sact-shapes64.npz")

    pack.options = dict(
        name="sact-shapes64", evaluation=path, output_dir=str(tmp_path / "zoo")
    )
    return pack


OPTIONS = dict(model="2", model_type="sact", base_channels=2, tau=0.1)


def test_numbers_of_a_card_are_those_of_files(
    run, program, tmp_path, capsys, monkeypatch
):
    def again(row, checkpoint, work):
        path = evaluate(sact_tf.cifar_resnet(**OPTIONS), checkpoint, work)
        return program.read_evaluation(path)

    monkeypatch.setattr(program, "evaluate_again", again)
    path = run()
    row = json.loads((tmp_path / "run" / "eval" / "eval.json").read_text())
    model = zoo.load_file(path)
    card = model.card
    assert card.evaluation["value_float32"] == row["eval/Accuracy"]
    assert card.evaluation["global_step"] == 7
    assert card.training["commit"] == "abcdef"
    # Where things lie is not told.
    assert card.training["flags"] == ["--dataset=shapes", "--image_size=16"]
    assert str(tmp_path) not in str(card) and "/x/y" not in str(card)
    assert card.class_names == shapes.CLASS_NAMES
    # What was stored is what was evaluated.
    test = shapes.load("test", 16, 40)
    images, labels = next(iter(test.evaluation_batches(40)))
    logits, end_points = model.with_end_points(images, training=False)
    right = np.mean(np.argmax(logits, -1) == labels)
    np.testing.assert_allclose(card.evaluation["value"], right, atol=1e-6)
    spent = float(np.mean(end_points["flops"]))
    np.testing.assert_allclose(card.evaluation["flops"], spent, rtol=1e-6)
    dense = float(model.dense_flops(images)[0])
    np.testing.assert_allclose(card.evaluation["relative_flops"], spent / dense)
    assert "## sact-shapes64" in capsys.readouterr().out


def test_times_are_added_later(run, tmp_path):
    path = run()
    before, weights = files.read(path)
    times = tmp_path / "times.json"
    row = {"side": "native", "milliseconds": 1.25, "machine": "m", "flops": 3}
    others = {**row, "name": "other"}
    times.write_text(json.dumps([{**row, "name": "sact-shapes64"}, others]))
    run(evaluation="", times=str(times))
    card, again = files.read(path)
    kept = {key: row[key] for key in ("side", "milliseconds", "machine")}
    assert card == {**before, "times": [kept]}
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name], value)
    times.write_text(json.dumps([others]))
    with pytest.raises(ValueError, match="--times=.*has no row of 'sact-shapes64'"):
        run(evaluation="", times=str(times))
    assert files.read(path)[0] == card
    files.write(path, {**card, "title": "Old words", "times": []}, weights)
    run(evaluation="")
    assert files.read(path)[0] == {**card, "times": []}


def test_what_cannot_be_packed(run, refusal, tmp_path):
    options = run.options
    assert refusal(**{**options, "name": None}).startswith("--name: must be given")
    assert "sact-shapes64.npz: does not exist" in refusal(
        **{**options, "evaluation": ""}
    )
    missing = {**options, "evaluation": str(tmp_path / "none.json")}
    assert refusal(**missing).startswith("--evaluation=")
    path = tmp_path / "run" / "eval" / "eval.json"
    whole = path.read_text()
    for change, message in (
        (dict(program="coco_train"), "is of the program coco_train; expected one of"),
        (dict(network=None), "does not say how its network is made"),
        (dict(training=None), "no run.json lay beside the checkpoint"),
        ({"eval/Accuracy": "x"}, "has eval/Accuracy 'x'"),
    ):
        path.write_text(json.dumps({**json.loads(whole), **change}))
        assert message in refusal(**options)
    path.write_text(whole)
    (tmp_path / "sact-shapes64.flags").write_text(RECIPE + "--tau=3\n")
    assert "--tau=3 where the run had nothing" in refusal(**options)
    assert not list((tmp_path / "zoo").glob("*"))


def test_networks_too_large_to_ship(run, program, refusal, monkeypatch, tmp_path):
    monkeypatch.setattr(program, "MAX_BYTES", 100)
    assert "bytes; at most 100" in refusal(**run.options)
    assert not list((tmp_path / "zoo").glob("*"))


def test_a_record_from_elsewhere(run, tmp_path):
    path = tmp_path / "run" / "eval" / "eval.json"
    row = json.loads(path.read_text())
    del row["training"]
    path.write_text(json.dumps(row))
    record = tmp_path / "other.json"
    record.write_text((tmp_path / "run" / "run.json").read_text())
    assert zoo.load_file(run(training_record=str(record))).card.training["seconds"] >= 0


@pytest.mark.long
def test_the_program_runs_again_on_rounded_weights(tmp_path, monkeypatch, start):
    """From training to a packed network, each program in a process of its own."""
    import subprocess
    import sys

    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    common = ["--dataset=shapes", "--image_size=16", "--model=1", "--base_channels=2"]
    run_dir = tmp_path / "run"

    def python(*arguments):
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    steps = ["--max_number_of_steps=2", "--batch_size=8", f"--train_log_dir={run_dir}"]
    python("experiments.cifar_main", *common, *steps)
    record = json.loads((run_dir / "run.json").read_text())
    assert record["program"] == "cifar_main"
    assert set(record["flags"]) == {*common, *steps}
    where = [f"--checkpoint_dir={run_dir}", f"--eval_dir={tmp_path}"]
    how = ["--mode=eval", "--evaluate_once"]
    python("experiments.cifar_main", *common, *how, *where)
    row = json.loads((tmp_path / "eval.json").read_text())
    assert row["training"]["flags"] == record["flags"]
    from experiments import zoo_pack

    stored = zoo_pack.evaluate_again(
        row, row["checkpoint"], str(tmp_path / "again" / "eval")
    )
    assert stored["eval/Accuracy"] == row["eval/Accuracy"]


def test_cards_of_other_kinds(program):
    """Digits looked at in glimpses, and a detector."""
    training = dict(program="p", flags=[], commit="c", machine="m", seconds=1.0)
    model = recurrent_attention(10, steps=4, units=4)
    row = {
        "program": "dt_ram_eval",
        "dataset": "mnist_npz",
        "split_name": "test",
        "network": kinds.describe(model),
        "num_examples": 10,
        "global_step": 3,
        "eval/Accuracy": 0.75,
        "steps/mean": 1.5,
        "Total Flops/mean": 1.5 * model.flops_per_step,
        "Total Flops/std": 0.5 * model.flops_per_step,
    }
    entries = program.make_card("dt-ram-mnist", model, row, row, training)
    card = cards.Card.of(entries, 1000, "x")
    assert card.relative_flops == "37.5 %"
    assert card.image_size == (28,) and len(card.class_names) == 10
    assert "| glimpses | 1.50 |" in str(card)

    model = FasterRCNN(2, "1_1_1_1", "sact", base_channels=2)
    row = {
        "program": "coco_eval",
        "dataset": "coco",
        "network": kinds.describe(model),
        "class_names": ["RBC", "WBC"],
        "image_size": [300, 1024],
        "num_examples": 10,
        "global_step": 3,
        "AP": 0.25,
        "AP50": 0.5,
        "Total Flops/mean": 200.0,
        "Total Flops/std": 3.0,
        "Relative Flops/mean": 0.625,
        "block1/dead_units": 0,
        "block2/dead_units": 1,
        "block1/num_units_mean": 1.25,
    }
    entries = program.make_card("detector-bccd", model, row, row, training)
    text = str(cards.Card.of(entries, 1000, "x"))
    for part in (
        "mAP at IoU 0.5 50.00 %",
        "62.5 % of those of the ordinary network of the same depth, blocks 1 to 3",
        "| mAP at IoU 0.50:0.95 | 25.00 % |",
        "| units per block | 1.25 |",
        "| units that no image runs, per block | 0, 1 |",
        "RBC, WBC",
        "short side 300 pixels, long side at most 1024",
    ):
        assert part in text
    with flagsaver.flagsaver(evaluation="e.json"):
        with pytest.raises(ValueError, match="does not tell the names of classes"):
            program.make_card(
                "detector-bccd", model, {**row, "class_names": None}, row, training
            )


def test_run_json_is_of_the_run_that_trained(tmp_path, program):
    record = tmp_path / "run.json"
    flags.DEFINE_string("train_log_dir", str(tmp_path), "")
    try:
        flags.FLAGS["train_log_dir"].value = str(tmp_path)
        assert run_record.trains()
        with run_record.kept():  # refused, say
            pass
        assert not record.exists()
        with run_record.kept():
            (tmp_path / "model.ckpt-1.index").touch()
        assert json.loads(record.read_text())["commit"] == run_record.commit()
        record.write_text("{}")
        with run_record.kept():  # had ended already
            pass
        assert record.read_text() == "{}"
        with pytest.raises(SystemExit), run_record.kept():
            (tmp_path / "model.ckpt-2.index").touch()
            raise SystemExit(143)
        assert record.read_text() != "{}"
        found = run_record.read(str(tmp_path))
        assert found["seconds"] == 0 and found["machine"] == run_record.machine()
        record.write_text('{"version": 1}')
        with pytest.raises(ValueError, match="has no 'program'"):
            run_record.read(str(tmp_path))
        assert run_record.read(str(tmp_path / "none")) is None
    finally:
        delattr(flags.FLAGS, "train_log_dir")


def test_how_long_a_run_trained(tmp_path):
    """All starts count, also one that was killed before it wrote its last summary."""

    def summarize(name, times):
        with tf.io.TFRecordWriter(
            str(tmp_path / f"events.out.tfevents.{name}")
        ) as file:
            for moment in times:
                event = tf.compat.v1.Event(wall_time=moment)
                file.write(event.SerializeToString())

    assert run_record.seconds_of(str(tmp_path)) == 0
    now = time.time()
    summarize("1", [now - 5000, now - 4900, now - 4800])
    summarize("2", [now - 1000, now - 700])
    assert run_record.seconds_of(str(tmp_path)) == pytest.approx(500)
    for name, age in (("a", 4750), ("b", 650), ("c", -100)):
        path = tmp_path / f"{name}.index"
        path.touch()
        os.utime(path, (now - age, now - age))
    # A checkpoint of much later was copied.
    os.utime(tmp_path / "c.index", (now + 5000, now + 5000))
    assert run_record.seconds_of(str(tmp_path)) == pytest.approx(600)
    cut = tmp_path / "events.out.tfevents.2"
    cut.write_bytes(cut.read_bytes()[:-4])
    assert run_record.seconds_of(str(tmp_path)) == pytest.approx(600)
