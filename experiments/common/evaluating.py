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
from sact_tf import evaluation, visualization
from sact_tf.end_points import ADAPTIVE_METRICS
from sact_tf.networks.options import NetworkOptions
from sact_tf.writing import atomic_file, write_json
from sact_tf.zoo import kinds

# Flags defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()


def define_sampling_flags() -> None:
    """Defines --num_samples, --sampling_seed and --write_images."""
    flags.DEFINE_integer(
        "num_samples",
        5,
        "How often networks that stop by chance are evaluated in discrete mode.",
        lower_bound=1,
    )
    flags.DEFINE_integer("sampling_seed", 0, "Of these samples.", lower_bound=0)
    flags.DEFINE_bool(
        "write_images",
        False,
        "Also write images.npz to --eval_dir: for every image whether it was right, "
        "its log loss and operations; paired_bootstrap reads it.",
    )


def sampling_options() -> dict[str, object]:
    """Returns what these flags say, for `evaluate_newest`."""
    names = ("num_samples", "sampling_seed", "write_images")
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
        model: Any that `sact_tf.zoo.kinds` describes.
        checkpoint: That was evaluated.

    Returns:
        `network`, how it is made again; `flags`, those of this evaluation; `training`,
        what the run's `run.json` says, left out where there is none.
    """
    entries = {
        "network": kinds.describe(model),
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
            write_images,
        )
        results.update(modes)
        images, _ = next(iter(examples.evaluation_batches(3)))
    print(f"Evaluated {checkpoint} on {examples.num_examples} images")
    for name, value in results.items():
        print(f"{name}[{value:.8g}]", flush=True)
    write_json(
        os.path.join(eval_dir, "eval.json"),
        {
            **record(options=model.options, checkpoint=checkpoint, **about),
            **provenance(model, checkpoint),
            "num_examples": examples.num_examples,
            **results,
        },
    )
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
