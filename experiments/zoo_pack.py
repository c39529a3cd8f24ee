"""Packs a trained network into a file of the zoo, with a card that tells about it.

    python -m experiments.zoo_pack --name=sact-resnet32-cifar10 \\
        --evaluation=runs/sact/eval/eval.json

All numbers of the card come from files: the evaluation's `eval.json`, which names the
checkpoint and holds what the run's `run.json` says. The weights are rounded to half
precision, and the program that made the evaluation runs again on the rounded weights,
with the same flags: that result is the card's. The recipe of the same name in
experiments/recipes must be what was run.

Times, as `experiments.benchmarks.zoo` measures them, can be added later. Without an
evaluation the file keeps its weights and results, and its texts are taken anew:

    python -m experiments.zoo_pack --name=sact-resnet32-cifar10 --times=times.json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

import tensorflow as tf
import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import programs, recipes, run_record
from experiments.common.zoo_plans import PLANS, Plan
from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.domains import AT_LEAST_0, brief
from sact_tf.zoo import files, kinds, loading

FLAGS = flags.FLAGS

MAX_BYTES = 1_200_000
"""Largest file of the zoo: all of them travel with the package."""

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_PROGRAMS = {
    "cifar_main": ("accuracy", "eval/Accuracy"),
    "imagenet_eval": ("accuracy", "eval/Accuracy"),
    "coco_eval": ("mAP at IoU 0.5", "AP50"),
    "dt_ram_eval": ("accuracy", "eval/Accuracy"),
}
"""Main result by the program that evaluates: what it is, and its name in eval.json."""

_ORDINARY = "those of the ordinary network of the same depth"

flags.DEFINE_enum("name", None, list(PLANS), "The network's name in the zoo.")
flags.DEFINE_string(
    "evaluation",
    "",
    "eval.json of its checkpoint; without it, the file that is there gets --times, and "
    "texts as they are now.",
)
flags.DEFINE_string(
    "training_record",
    "",
    "run.json of its training, if none lies beside the checkpoint.",
)
flags.DEFINE_string("times", "", "JSON file of experiments.benchmarks.zoo.")
flags.DEFINE_string("output_dir", loading.DIRECTORY, "Directory of the file.")


def read_evaluation(path: str) -> Mapping[str, object]:
    """Reads an eval.json that says how its network is made.

    Raises:
        DataError: It does not, or is of another program.
    """
    row = reading.read_json(path)
    row = reading.checked_row(row, {"program": reading.text()}, path)
    if row["program"] not in _PROGRAMS:
        raise DataError(
            f"{path}: is of the program {row['program']}; expected one of "
            f"{', '.join(_PROGRAMS)}"
        )
    _, key = _PROGRAMS[row["program"]]
    fields = {key: reading.number(), "checkpoint": reading.text()}
    row = reading.checked_row(row, fields, path)
    if not isinstance(row.get("network"), Mapping) or not isinstance(
        row.get("flags"), list
    ):
        raise DataError(
            f"{path}: does not say how its network is made, as older files; evaluate "
            "the checkpoint again"
        )
    return row


def training_of(row: Mapping[str, object]) -> Mapping[str, object]:
    """Returns the record of the run that made an evaluation's checkpoint."""
    if FLAGS.training_record:
        directory = os.path.dirname(row["checkpoint"])
        record = reading.read_json(FLAGS.training_record)
        record = {"seconds": round(run_record.seconds_of(directory), 1), **record}
    else:
        record = row.get("training")
    if not isinstance(record, Mapping):
        raise DataError(
            f"--evaluation={FLAGS.evaluation}: no run.json lay beside the checkpoint. "
            "Start the training again with the same flags, which writes it at once, "
            "and evaluate again; or name a file, --training_record"
        )
    fields = {
        "program": reading.text(),
        "commit": reading.text(),
        "machine": reading.text(),
        "seconds": reading.number(AT_LEAST_0),
    }
    record = reading.checked_row(record, fields, "the training record")
    if not isinstance(record.get("flags"), list):
        raise DataError("the training record has no list of flags")
    return record


def evaluate_again(row: Mapping[str, object], checkpoint: str, work: str) -> dict:
    """Runs an evaluation's program on another checkpoint; returns its eval.json."""
    named = recipes.meaning(row["flags"])
    given = [f for f in row["flags"] if _flag(f) not in ("checkpoint_dir", "eval_dir")]
    given += [f"--checkpoint_dir={checkpoint}", f"--eval_dir={work}"]
    if "evaluate_once" not in named and row["program"] != "coco_eval":
        given.append("--evaluate_once")
    python_path = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", f"experiments.{row['program']}", *given]
    print(f"Evaluating the rounded weights: {row['program']}", flush=True)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path},
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise DataError(f"{row['program']} failed on the rounded weights: {last[-1]}")
    return read_evaluation(os.path.join(work, "eval.json"))


def _flag(line: str) -> str:
    return line.removeprefix("--").partition("=")[0]


def operations(
    model: keras.Model, row: Mapping[str, object]
) -> tuple[float, float, float, str]:
    """Returns FLOPs per image, their deviation, their share, and of what that is."""
    mean, deviation = (row[f"Total Flops/{key}"] for key in ("mean", "std"))
    if row["program"] == "dt_ram_eval":
        dense = model.flops_per_step * model.steps
        return mean, deviation, mean / dense, "those of all glimpses"
    if row["program"] == "coco_eval":
        relative, of = row["Relative Flops/mean"], f"{_ORDINARY}, blocks 1 to 3"
        return mean, deviation, relative, of
    side = row["image_size"]
    dense = float(model.dense_flops(tf.zeros([1, side, side, 3]))[0])
    is_iterative = type(model).__name__ == "IterativeNet"
    of = "those of all iterations" if is_iterative else _ORDINARY
    return mean, deviation, mean / dense, of


def other_results(row: Mapping[str, object]) -> dict[str, str]:
    """Returns what else an evaluation tells, in words."""
    others = {}
    if row["program"] == "coco_eval":
        others["mAP at IoU 0.50:0.95"] = f"{100 * row['AP']:.2f} %"
    if row["program"] == "dt_ram_eval":
        others["glimpses"] = f"{row['steps/mean']:.2f}"
    for suffix, name, form in (
        ("/num_units_mean", "units per block", ".2f"),
        ("/dead_units", "units that no image runs, per block", "d"),
    ):
        blocks = sorted(key for key in row if key.endswith(suffix))
        if blocks:
            others[name] = ", ".join(format(row[key], form) for key in blocks)
    return others


def texts(name: str) -> dict[str, object]:
    """Returns the entries of a card that are words."""
    plan: Plan = PLANS[name]
    return {
        "title": plan.title,
        "data": {"name": plan.data.name, "terms": plan.data.terms},
        "limits": list(plan.limits),
        "recipe": os.path.basename(recipes.path_of(name)),
        "start": plan.start,
    }


def make_card(
    name: str,
    model: keras.Model,
    row: Mapping[str, object],
    stored: Mapping[str, object],
    training: Mapping[str, object],
) -> dict[str, object]:
    """Returns the entries of a card.

    Args:
        name: The network's.
        model: The network.
        row: Evaluation of the weights as they were trained.
        stored: The same of the rounded ones.
        training: Record of the run.
    """
    metric, key = _PROGRAMS[row["program"]]
    flops, deviation, relative, of = operations(model, stored)
    names = PLANS[name].data.class_names or row.get("class_names")
    if not names:
        raise DataError(
            f"--evaluation={FLAGS.evaluation}: does not tell the names of classes"
        )
    is_grey = row["program"] == "dt_ram_eval"
    network = getattr(model, "network", model)  # a detector's
    return {
        "name": name,
        **texts(name),
        "network": row["network"],
        "class_names": list(names),
        "preprocessing": "grey, scaled to [0, 1]"
        if is_grey
        else network.options.preprocessing,
        "image_size": list(model.image_shape[:1]) if is_grey else row["image_size"],
        "evaluation": {
            "program": row["program"],
            "dataset": row["dataset"],
            "metric": metric,
            "value": stored[key],
            "value_float32": row[key],
            "num_examples": row["num_examples"],
            "split": row.get("split_name", "test"),
            "flops": flops,
            "flops_std": deviation,
            "relative_flops": relative,
            "relative_to": of,
            "global_step": row["global_step"],
            "others": other_results(stored),
        },
        "training": {
            "program": training["program"],
            "flags": sorted(recipes.meaning(training["flags"]).values()),
            "commit": training["commit"],
            "machine": training["machine"],
            "seconds": training["seconds"],
        },
        "times": [],
    }


def pack(name: str) -> tuple[dict[str, object], dict]:
    """Returns the card and the weights of the network of --evaluation."""
    row = read_evaluation(os.path.expanduser(FLAGS.evaluation))
    training = training_of(row)
    recipes.check(recipes.path_of(name), training["program"], training["flags"])
    model = kinds.make(row["network"], execution="masked")
    sact_tf.load_slim_checkpoint(model, row["checkpoint"])
    variables = sact_tf.slim_variables(model)
    tensors = {name: variable.numpy() for name, variable in variables.items()}
    for key, value in files.rounded(tensors).items():
        variables[key].assign(value)
    with tempfile.TemporaryDirectory() as work:
        prefix = os.path.join(work, "checkpoint", "model.ckpt")
        prefix = f"{prefix}-{int(row['global_step'])}"
        sact_tf.save_slim_checkpoint(model, prefix, int(row["global_step"]))
        stored = evaluate_again(row, prefix, os.path.join(work, "eval"))
    return make_card(name, model, row, stored, training), tensors


def read_times(name: str) -> list[dict]:
    """Returns the rows of --times that are of a network."""
    fields = {
        "name": reading.text(),
        "side": reading.text(),
        "milliseconds": reading.number(AT_LEAST_0),
        "machine": reading.text(),
    }
    found = reading.read_json(FLAGS.times)
    rows = found.get("rows") if isinstance(found, Mapping) else found
    rows = reading.checked_rows(rows, fields, FLAGS.times)
    kept = [
        {key: row[key] for key in fields if key != "name"}
        for row in rows
        if row["name"] == name
    ]
    if not kept:
        raise DataError(f"--times={FLAGS.times}: has no row of {brief(name)}")
    return kept


def main() -> None:
    """Packs a network, or brings the card of one up to date."""
    programs.require("name")
    name = FLAGS.name
    output_dir = programs.make_directory("output_dir", FLAGS.output_dir)
    path = os.path.join(output_dir, f"{name}.npz")
    if FLAGS.evaluation:
        card, tensors = pack(name)
    else:
        card, tensors = files.read(path)
        card.update(texts(name))
    if FLAGS.times:
        card["times"] = read_times(name)
    with tempfile.TemporaryDirectory() as work:
        size = files.write(os.path.join(work, f"{name}.npz"), card, tensors)
    if size > MAX_BYTES:
        raise ValueError(
            f"{name}: would take {size} bytes; at most {MAX_BYTES}. Train one of fewer "
            "--base_channels"
        )
    files.write(path, card, tensors)
    print(loading.read_card(path))
    print(f"\nWrote {path}, {size} bytes")
    print("docs/zoo.md: python -m experiments.models --write_cards=docs/zoo.md")


if __name__ == "__main__":
    programs.run(main)
