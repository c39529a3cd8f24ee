"""Trains and evaluates with the TensorFlow Model Garden, from a YAML file.

Image classification, RetinaNet and semantic segmentation on the ACT and SACT ResNet:

    python -m experiments.model_garden_train --experiment=sact_resnet_imagenet \\
        --config_file=experiments/configs/imagenet_sact_resnet50.yaml \\
        --mode=train_and_eval --model_dir=runs/garden_imagenet

Flags are those of the Model Garden's own train.py. A run that was stopped goes on from
its newest checkpoint when started again.
"""

# ruff: noqa: E402

from __future__ import annotations

import contextlib
import os
import sys

import tensorflow as tf
from absl import flags

from experiments.common import programs

programs.need("official")

import yaml
from official.common import distribute_utils
from official.core import (
    config_definitions,
    exp_factory,
    task_factory,
    train_lib,
)
from official.modeling import hyperparams, performance
from official.vision.utils import summary_manager

from sact_tf import checkpoints, model_garden, run_control
from sact_tf.writing import atomic_file

FLAGS = flags.FLAGS
MODES = ("train", "eval", "train_and_eval", "continuous_eval", "train_and_post_eval")
SECTIONS = ("runtime", "task", "trainer")

flags.DEFINE_string(
    "experiment",
    None,
    "Name of the experiment, which says what --config_file does not: "
    f"{', '.join(model_garden.EXPERIMENTS)}, or one of the Model Garden's own.",
)
flags.DEFINE_enum(
    "mode", None, MODES, "What to do; continuous_eval follows new checkpoints."
)
flags.DEFINE_string(
    "model_dir", None, "Directory for checkpoints, configuration and summaries."
)
flags.DEFINE_multi_string(
    "config_file", [], "YAML files of the configuration; later ones override."
)
flags.DEFINE_string(
    "params_override",
    "",
    "What to override in turn, as a YAML file, as YAML, or as in "
    "task.train_data.global_batch_size=32,runtime.num_gpus=2.",
)
flags.DEFINE_integer(
    "tile_size",
    None,
    "Side of the square tiles whose positions halt together, instead of the tile_size "
    "of --config_file; only for the backbone sact_resnet.",
    lower_bound=1,
)


def _override(parameters, flag: str, value: str) -> None:
    """Overrides parameters in place by a flag's YAML file or string."""
    try:
        hyperparams.override_params_dict(parameters, value, is_strict=True)
    # Whatever does not fit the Model Garden's dataclasses ends up as one of these.
    except (
        yaml.YAMLError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        tf.errors.OpError,
    ) as error:
        reason = " ".join(str(error).split()).strip("\"'")
        raise ValueError(
            f"--{flag}={value}: does not hold parameters of experiment "
            f"{FLAGS.experiment}, in YAML: {reason}"
        ) from error


def load_parameters() -> config_definitions.ExperimentConfig:
    """Returns the experiment's parameters, overridden by file and flag.

    Raises:
        ValueError: Naming the flag, if the experiment is not known or something does
            not fit it.
        FileNotFoundError: There is no such file.
    """
    try:
        parameters = exp_factory.get_exp_config(FLAGS.experiment)
    except LookupError as error:
        raise ValueError(
            f"--experiment={FLAGS.experiment}: not known; use one of "
            f"{', '.join(model_garden.EXPERIMENTS)}, or of the Model Garden's own"
        ) from error
    for path in FLAGS.config_file:
        if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
            raise FileNotFoundError(f"--config_file={path}: there is no such file")
        _override(parameters, "config_file", path)
    _override(parameters, "params_override", FLAGS.params_override)
    _set_tile_size(parameters)
    # Any value, such as the null of a key with nothing below, may replace a section.
    for name in SECTIONS:
        if not isinstance(parameters.get(name), hyperparams.Config):
            raise ValueError(
                f"--config_file, --params_override: {name} must hold parameters; got "
                f"{parameters.get(name)!r}"
            )
    parameters.validate()
    parameters.lock()
    return parameters


def _set_tile_size(parameters) -> None:
    """Overrides the backbone's tile size by --tile_size, if that is given."""
    if FLAGS.tile_size is None:
        return
    model = getattr(parameters.task, "model", None)
    backbone = getattr(model, "backbone", None)
    if backbone is None or backbone.type != "sact_resnet":
        raise ValueError(
            f"--tile_size={FLAGS.tile_size}: needs the backbone sact_resnet; "
            f"--experiment={FLAGS.experiment} has another"
        )
    backbone.sact_resnet.tile_size = FLAGS.tile_size


def _run(strategy, task, parameters, model_dir, interruption) -> None:
    """Runs the experiment; a signal ends it after the loop of steps in progress."""

    def stop_if_asked(_):
        if interruption.signal is None:
            return
        step = int(runner.trainer.global_step.numpy())
        path = runner.checkpoint_manager.save(step, check_interval=False)
        print(
            f"Stopped by {interruption.signal.name} at step {step}; start again "
            f"to go on from {path or runner.checkpoint_manager.latest_checkpoint}",
            flush=True,
        )
        sys.exit(interruption.exit_code)

    runner = train_lib.OrbitExperimentRunner(
        distribution_strategy=strategy,
        task=task,
        mode=FLAGS.mode,
        params=parameters,
        model_dir=model_dir,
        train_actions=[stop_if_asked],
        eval_summary_manager=summary_manager.maybe_build_eval_summary_manager(
            params=parameters, model_dir=model_dir
        ),
    )
    runner.run()


def main() -> None:
    """Runs the experiment."""
    programs.require("experiment", "mode", "model_dir")
    parameters = load_parameters()
    if checkpoints.is_pattern(FLAGS.model_dir):
        raise ValueError(
            f"--model_dir={FLAGS.model_dir}: must be a path without [, ], *, ? and "
            "backslash; the Model Garden's checkpoints cannot be read from others"
        )
    model_dir = programs.make_directory("model_dir", FLAGS.model_dir)
    if "train" in FLAGS.mode:
        with atomic_file(os.path.join(model_dir, "params.yaml")) as temporary:
            hyperparams.save_params_dict_to_yaml(parameters, temporary)
    elif FLAGS.mode == "eval" and tf.train.latest_checkpoint(model_dir) is None:
        raise FileNotFoundError(f"--model_dir={model_dir}: holds no checkpoint")
    runtime = parameters.runtime
    if runtime.mixed_precision_dtype:
        performance.set_mixed_precision_policy(runtime.mixed_precision_dtype)
    strategy = distribute_utils.get_distribution_strategy(
        distribution_strategy=runtime.distribution_strategy,
        all_reduce_alg=runtime.all_reduce_alg,
        num_gpus=runtime.num_gpus,
        tpu_address=runtime.tpu,
    )
    with strategy.scope():
        task = task_factory.get_task(parameters.task, logging_dir=model_dir)
    writes = "train" in FLAGS.mode and strategy.extended.should_checkpoint
    lock = run_control.locked(model_dir) if writes else contextlib.nullcontext()
    with lock, run_control.Interruption() as interruption:
        _run(strategy, task, parameters, model_dir, interruption)
    print(f"Newest checkpoint: {tf.train.latest_checkpoint(os.fspath(model_dir))}")


if __name__ == "__main__":
    programs.run(main)
