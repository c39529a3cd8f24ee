"""Flags of how small images are trained on: the original's recipe, or a short one."""

from __future__ import annotations

import dataclasses

import tf_keras as keras
from absl import flags

from experiments.common import iterative
from sact_tf import optimization
from sact_tf.data.examples import Examples
from sact_tf.domains import COUNT

FLAGS = flags.FLAGS
# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()


def define_flags() -> None:
    """Defines the flags of schedule, optimizer, loss and augmentation."""
    flags.DEFINE_enum(
        "recipe",
        None,
        ["sact", "iterative"],
        "sact: learning rates from 0.1, crops and flips; iterative: from 0.01, flips "
        "only. By default that of the network's paper.",
    )
    flags.DEFINE_enum(
        "learning_rate_schedule",
        "steps",
        ["steps", "cosine", "one_cycle"],
        "steps: the original's, at --learning_rate_boundaries; cosine: half a cosine "
        "down to 0; one_cycle: the same after a linear rise in the first quarter.",
    )
    flags.DEFINE_float(
        "learning_rate",
        None,
        "The highest rate; by default the one of --recipe.",
        lower_bound=0.0,
    )
    flags.DEFINE_list(
        "learning_rate_boundaries",
        [],
        "The last steps at learning rates 0.1, 0.01 and 0.001, as in "
        "60000,75000,90000; empty: 60, 75 and 90 % of --max_number_of_steps. "
        "With --recipe=iterative, the last at 0.01 and 0.001; empty: a third and two "
        "thirds.",
    )
    flags.DEFINE_bool("nesterov", False, "Train with Nesterov's momentum.")
    flags.DEFINE_float(
        "label_smoothing",
        0.0,
        "Probability that is spread evenly over all classes.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_integer(
        "cutout",
        0,
        "Side in pixels of a square that is cut out of every training image; 0: none.",
        lower_bound=0,
    )


def _is_iterative():
    """Whether training is that of iterative networks, and of those beside them."""
    is_theirs = iterative.is_asked_for() or FLAGS.network == "cifar_bottleneck"
    return (FLAGS.recipe or ("iterative" if is_theirs else "sact")) == "iterative"


def learning_rate() -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule the flags describe.

    Raises:
        ValueError: On boundaries that are no increasing steps, or without a use.
    """
    is_iterative = _is_iterative()
    highest = FLAGS.learning_rate
    if highest is None:
        highest = 0.01 if is_iterative else 0.1
    steps, boundaries = FLAGS.max_number_of_steps, FLAGS.learning_rate_boundaries
    kind = FLAGS.learning_rate_schedule
    if kind != "steps":
        if boundaries:
            raise ValueError(
                f"--learning_rate_boundaries={','.join(boundaries)}: needs "
                f"--learning_rate_schedule=steps; got {kind}"
            )
        return optimization.smooth_learning_rate(steps, highest, kind == "one_cycle")
    schedule, example = optimization.cifar_learning_rate, "60000,75000,90000"
    if is_iterative:
        schedule, example = optimization.iterative_learning_rate, "20000,40000"
    try:
        parsed = [COUNT.parse(step, "a step") for step in boundaries]
        return schedule(steps, parsed, highest)
    except ValueError as error:
        raise ValueError(
            f"--learning_rate_boundaries={','.join(boundaries)}: must be "
            f"{example.count(',') + 1} increasing steps >= 1 within 64 bits, such as "
            f"{example}"
        ) from error


def augmented(examples: Examples) -> Examples:
    """Returns training examples, augmented as the flags say.

    With --recipe=iterative, flips are all there is but --cutout.
    """
    examples = dataclasses.replace(examples, cutout=FLAGS.cutout)
    if _is_iterative():
        examples = dataclasses.replace(examples, crop_padding=0)
    return examples


def training_options() -> dict[str, object]:
    """Returns the options that these flags give to `training.train`."""
    return dict(nesterov=FLAGS.nesterov, label_smoothing=FLAGS.label_smoothing)
