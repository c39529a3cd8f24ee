"""What the evaluating programs share: one checkpoint, or every new one, without end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import flags

import sact_tf
from experiments.common import programs, run_record
from sact_tf import evaluation, iterations, visualization
from sact_tf.end_points import ADAPTIVE_METRICS
from sact_tf.layers import BatchNorm
from sact_tf.networks.options import NetworkOptions
from sact_tf.writing import atomic_file, write_json
from sact_tf.zoo import kinds

# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()


def define_evaluation_flags() -> None:
    """Defines how networks run, and the flags of what is told of single images."""
    programs.define_execution_flags()
    define_sampling_flags()
    flags.DEFINE_bool(
        "write_images",
        False,
        "Also write images.npz to --eval_dir: for every image whether it was right, "
        "its log loss and operations; paired_bootstrap reads it.",
    )
    flags.DEFINE_bool(
        "draw_iterations",
        False,
        "Of networks whose images halt as a whole: also write iterations.json and "
        "iterations.png, the error by number of iterations, and iterations_images.png, "
        "images sorted by it.",
    )
    flags.DEFINE_integer(
        "time_images",
        0,
        "Also time so many images, the first ones, one at a time.",
        lower_bound=0,
    )


def define_sampling_flags() -> None:
    """Defines --num_samples and --sampling_seed."""
    flags.DEFINE_integer(
        "num_samples",
        5,
        "How often networks that stop by chance are evaluated in discrete mode.",
        lower_bound=1,
    )
    flags.DEFINE_integer("sampling_seed", 0, "Of these samples.", lower_bound=0)


def evaluation_options() -> dict[str, object]:
    """Returns what these flags say, for `evaluate_newest`."""
    names = ("num_samples", "sampling_seed", "write_images")
    names += ("draw_iterations", "time_images")
    return {name: flags.FLAGS[name].value for name in names}


RECORD_VERSION = 1
"""Of what `record` writes; rises when an entry's meaning changes."""


def record(
    program: str,
    options: NetworkOptions,
    checkpoint: str,
    image_size: int | list[int],
    **others,
) -> dict[str, object]:
    """Returns what eval.json says of an evaluation beside its results.

    `experiments.report` reads it.

    Args:
        program: That evaluates.
        options: Of the network, of a detector those of its network.
        checkpoint: TF-Slim checkpoint.
        image_size: Side of the images; of a detector the short side and the limit of
            the long one.
        **others: Further entries, such as `dataset`; those that are None are left out.
    """
    entries = {
        "program": program,
        "version": RECORD_VERSION,
        "checkpoint": checkpoint,
        "global_step": sact_tf.checkpoint_step(checkpoint),
        "model": options.model,
        "model_type": options.model_type,
        "tau": options.tau_of(0),
        "base_channels": options.base_channels,
        "tile_size": options.tile_size,
        "image_size": image_size,
        **others,
    }
    return {name: value for name, value in entries.items() if value is not None}


def provenance(model: keras.Model, checkpoint: str) -> dict[str, object]:
    """Returns what eval.json says of where a network is from.

    Args:
        model: Any.
        checkpoint: That was evaluated.

    Returns:
        `network`, how it is made again, if `sact_tf.zoo` can hold it; `flags`, those
        of this evaluation; `training`, what the run's `run.json` says, left out where
        there is none.
    """
    entries = {
        "network": kinds.describe(model) if kinds.is_known(model) else None,
        "flags": run_record.given_flags(),
        "training": run_record.read(os.path.dirname(checkpoint)),
    }
    return {name: value for name, value in entries.items() if value is not None}


def evaluate_checkpoint(
    model: keras.Model,
    examples,
    checkpoint: str,
    eval_dir: str,
    about: Mapping[str, object],
    batch_size: int,
    recall_at: int | None = None,
    num_samples: int = 5,
    sampling_seed: int = 0,
    write_images: bool = False,
    draw_iterations: bool = False,
    time_images: int = 0,
) -> None:
    """Evaluates one checkpoint; prints, writes eval.json and summaries.

    A network that can stop in several ways is evaluated in all of them as well.

    Args:
        model: The checkpoint's network.
        examples: The split to evaluate.
        checkpoint: TF-Slim checkpoint.
        eval_dir: Where to write.
        about: Arguments of `record`: program, image size and others.
        batch_size: Images per step.
        recall_at: As in `evaluation.evaluate`.
        num_samples: As in `evaluation.evaluate_modes`.
        sampling_seed: Of all that is drawn.
        write_images: Whether images.npz is written.
        draw_iterations: Whether `write_iterations` is called.
        time_images: How many images are timed, one at a time.

    Raises:
        ValueError: Iterations are to be drawn of a network whose images do not halt as
            a whole.
    """
    sact_tf.load_slim_checkpoint(model, checkpoint)
    step = sact_tf.checkpoint_step(checkpoint)
    with examples.explained_errors():
        results = evaluation.evaluate(
            model, examples.evaluation_batches(batch_size), recall_at, sampling_seed
        )
        modes, per_image = evaluation.evaluate_modes(
            model,
            lambda: examples.evaluation_batches(batch_size),
            num_samples,
            sampling_seed,
            write_images or draw_iterations,
        )
        results.update(modes)
        if time_images:
            results.update(_times(model, examples, time_images))
        images, _ = next(iter(examples.evaluation_batches(3)))
    print(f"Evaluated {checkpoint} on {examples.num_examples} images")
    for name, value in results.items():
        print(f"{name}[{value:.8g}]", flush=True)
    write_json(
        os.path.join(eval_dir, "eval.json"),
        {
            **record(options=model.options, checkpoint=checkpoint, **about),
            **provenance(model, checkpoint),
            "execution": model.execution,
            "parameters": count_parameters(model),
            "num_examples": examples.num_examples,
            **results,
        },
    )
    if draw_iterations:
        write_iterations(eval_dir, model, examples, per_image, batch_size)
    if write_images:
        with atomic_file(os.path.join(eval_dir, "images.npz")) as name:
            with open(name, "wb") as file:
                np.savez(file, **per_image)
    seed = tf.constant([sampling_seed, 0])
    _, end_points = model.with_end_points(images, training=False, seed=seed)
    writer = tf.summary.create_file_writer(eval_dir)
    with writer.as_default(step):
        for name, value in results.items():
            tf.summary.scalar(name, value)
        if visualization.has_maps(end_points):
            for key in ADAPTIVE_METRICS:
                tf.summary.image(
                    f"heatmaps/{key}", visualization.heatmap(end_points, key)
                )
    writer.close()


def count_parameters(model: sact_tf.Network) -> int:
    """Counts kernels and biases, without batch normalizations, as papers do."""
    norms = [layer for layer in model.submodules if isinstance(layer, BatchNorm)]
    theirs = {id(variable) for norm in norms for variable in norm.variables}
    counted = [v for v in model.trainable_variables if id(v) not in theirs]
    return sum(int(np.prod(variable.shape)) for variable in counted)


def _times(model, examples, count):
    """Times the first images; returns what is told of that."""
    images = examples.evaluation_batches(1).take(count)
    seconds = evaluation.seconds_per_image(model, (image[0] for image, _ in images))
    return {
        "Seconds per Image/mean": float(seconds.mean()),
        "Seconds per Image/median": float(np.median(seconds)),
    }


_DRAWN_IMAGES = 40


def write_iterations(
    eval_dir: str,
    model: sact_tf.Network,
    examples,
    per_image: Mapping[str, np.ndarray],
    batch_size: int,
) -> None:
    """Writes the error by number of iterations, and images sorted by it.

    Args:
        eval_dir: Where iterations.json, iterations.png and iterations_images.png go.
        model: The network.
        examples: The split.
        per_image: Of `evaluation.evaluate_modes`.
        batch_size: Images per step.

    Raises:
        ValueError: Images do not halt as a whole.
    """
    name = next((name for name in per_image if name.endswith("/Units")), None)
    if name is None:
        raise ValueError(
            "--draw_iterations: needs a network whose images halt as a whole, such as "
            f"act or iterative; got --model_type={model.options.model_type}"
        )
    units = per_image[name].astype(int)
    correct = per_image[name.replace("Units", "Accuracy")]
    rows = iterations.error_by_iterations(units, correct)
    write_json(os.path.join(eval_dir, "iterations.json"), rows)
    for row in rows:
        print(
            "{iterations} iterations: {images} images, error {error:.4f}".format(**row)
        )
    chosen = iterations.spread(units, _DRAWN_IMAGES)
    shown, first = {}, 0
    for images, _ in examples.evaluation_batches(batch_size):
        last = first + len(images)
        for k in chosen[(chosen >= first) & (chosen < last)]:
            shown[k] = _visible(images[k - first].numpy())
        first = last
    for name, figure in (
        ("iterations.png", iterations.error_figure(rows)),
        (
            "iterations_images.png",
            iterations.images_figure([shown[k] for k in chosen], units[chosen]),
        ),
    ):
        visualization.save_figure(figure, os.path.join(eval_dir, name))


def _visible(image):
    """Maps a preprocessed image to [0, 1]: its own range, which is not known."""
    low, high = float(image.min()), float(image.max())
    return (image - low) / max(high - low, 1e-6)


def newest_checkpoint(path: str) -> str | None:
    """Returns the newest checkpoint of a directory; the path itself if it is none."""
    if os.path.isdir(path):
        return sact_tf.newest_checkpoint(path)
    return path if tf.io.gfile.exists(f"{path}.index") else None


def evaluate_newest(
    model: keras.Model,
    load_examples,
    checkpoint_dir: str,
    eval_dir: str,
    evaluate_once: bool,
    interval_secs: float,
    evaluate: Callable[..., None] = evaluate_checkpoint,
    **options,
) -> None:
    """Evaluates the newest checkpoint once, or every new one, without end.

    Args:
        model: The checkpoints' network.
        load_examples: Function that returns the split to evaluate.
        checkpoint_dir: Directory of checkpoints, or one checkpoint.
        eval_dir: Where to write.
        evaluate_once: Whether to do so once.
        interval_secs: Seconds between looks for a new checkpoint.
        evaluate: Takes the same as `evaluate_checkpoint`.
        **options: Of `evaluate`.

    Raises:
        FileNotFoundError: There is no checkpoint to evaluate once.
    """
    eval_dir = programs.make_directory("eval_dir", eval_dir)
    path = os.path.expanduser(checkpoint_dir)
    if evaluate_once and newest_checkpoint(path) is None:
        raise FileNotFoundError(f"--checkpoint_dir={path}: holds no checkpoint")
    examples = load_examples()
    evaluated = None
    while True:
        try:
            checkpoint = newest_checkpoint(path)
        except FileNotFoundError as error:  # being copied, perhaps
            print(error, flush=True)
            checkpoint = None
        if checkpoint is None:
            print(f"Waiting for a checkpoint in {path}", flush=True)
        elif checkpoint != evaluated:
            evaluate(model, examples, checkpoint, eval_dir, **options)
            evaluated = checkpoint
            if evaluate_once:
                return
            continue
        time.sleep(interval_secs)
