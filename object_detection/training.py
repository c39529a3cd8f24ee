"""Training of detectors: schedule, first weights, summaries."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from object_detection.data.examples import DetectionExamples
from object_detection.evaluation import to_original
from object_detection.faster_rcnn import FasterRCNN
from object_detection.visualization import draw_detections
from sact_tf import optimization, training
from sact_tf.optional import lazy
from sact_tf.summaries import Summaries, measured

lr_schedule = lazy("official.modeling.optimization.lr_schedule")

_BOUNDARIES = (2 / 3, 5 / 6)  # 800k and 1M of 1.2M steps
_DRAWN_IMAGES = 4
_DRAWN_SCORE = 0.5


def learning_rate(
    max_number_of_steps: int, initial: float = 3e-4, warmup_steps: int = 0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule: a tenth after 2/3 and after 5/6 of the steps.

    With the 1.2 million steps of SACT, A.2, that is after 800,000 and 1,000,000.

    Args:
        max_number_of_steps: Steps of the whole run.
        initial: The rate at first.
        warmup_steps: Steps in which the rate grows from zero to that.
    """
    boundaries = [round(max_number_of_steps * share) for share in _BOUNDARIES]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        boundaries, [initial, initial / 10, initial / 100]
    )
    if not warmup_steps:
        return schedule
    return lr_schedule.LinearWarmup(schedule, warmup_steps, 0.0)


class _Summaries(Summaries):
    """Writes running means, and what the detector makes of a few images."""

    def __init__(self, state, directory, examples: DetectionExamples, secs: float):
        super().__init__(state, directory, secs)
        self._batches = list(examples.first(_DRAWN_IMAGES).evaluation_batches(1))
        self._names = [category["name"] for category in examples.categories]

    def write(self, logs):
        tf.summary.scalar("Learning Rate", self.model.optimizer.learning_rate)
        for k, example in enumerate(self._batches):
            detections, metrics, heatmaps = self.on_one_replica(
                self._measure, example["image"], example["size"]
            )
            self.write_measured(k, metrics, heatmaps)
            self._write_image(k, example["image"], detections)

    def _measure(self, image, size):
        """Returns detections, means of metrics, and the heat map if there is one."""
        detections = self.model(image, size)
        end_points = detections.pop("end_points")
        return detections, *measured(end_points)

    def _write_image(self, k, image, detections):
        image = (np.clip(image[0], -1, 1) + 1) * 127.5
        boxes, scores, classes = to_original(detections, np.ones([1, 2]))[0]
        drawn = draw_detections(
            image.astype(np.uint8), boxes, scores, classes, self._names, _DRAWN_SCORE
        )
        tf.summary.image(f"detections/{k}", drawn[np.newaxis])


def _check_execution(model, batch_size):
    """Raises ValueError where nothing can be skipped in training."""
    if model.execution == "masked":
        return
    if model.options.train_batch_norm:
        raise ValueError(
            "execution must be 'masked' to train with train_batch_norm, since moments "
            f"of batches are over all positions; got {model.execution}"
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if batch_size > replicas:
        raise ValueError(
            f"batch_size must be 1 (and 1 for each replica) to train with execution="
            f"{model.execution!r}, which takes no padded images; got {batch_size} for "
            f"{replicas}"
        )


def train(
    model: FasterRCNN,
    examples: DetectionExamples,
    log_dir: str,
    max_number_of_steps: int,
    batch_size: int = 1,
    rate: keras.optimizers.schedules.LearningRateSchedule | None = None,
    momentum: float = 0.9,
    clip_norm: float | None = None,
    save_interval_secs: float = 600,
    save_summaries_secs: float = 600,
    seed: int | None = None,
    jit_compile: bool = False,
    data_service: str | None = None,
    verbose: bool = True,
) -> str:
    """Trains a detector, or goes on from the newest checkpoint in `log_dir`.

    A detector that was made in the scope of a strategy of `tf.distribute` is trained
    with it.

    Args:
        model: With `execution="masked"`; or, with stored moments and one image at a
            time, any.
        examples: Training images with boxes.
        log_dir: Where checkpoints and TensorBoard summaries are written.
        max_number_of_steps: Steps of the whole run, those before a resume included.
        batch_size: Images per step, of all replicas together.
        rate: Schedule; None is `learning_rate(max_number_of_steps)`.
        momentum: Of the optimizer.
        clip_norm: Largest norm of all gradients together; None: any.
        save_interval_secs: Seconds between checkpoints.
        save_summaries_secs: Seconds between summaries.
        seed: Of shuffling and flips; None draws one.
        jit_compile: Whether XLA compiles the training step.
        data_service: Address of a tf.data service that prepares the batches.
        verbose: Whether to show steps, speed and running means as it goes.

    Returns:
        Prefix of the last checkpoint.

    Raises:
        TrainingError: The loss or the weights are not finite any more.
        CheckpointMismatchError: `log_dir` holds the checkpoint of another detector.
        DataError: An image cannot be read, or no image has a box to learn from.
        ValueError: The detector cannot be trained, or there are fewer images than
            `batch_size`.
    """
    _check_execution(model, batch_size)
    with model.distribute_strategy.scope():
        model.compile(
            optimization.Momentum(
                rate or learning_rate(max_number_of_steps),
                momentum=momentum,
                global_clipnorm=clip_norm,
            ),
            jit_compile=jit_compile,
        )
    return training.fit(
        model,
        examples,
        log_dir,
        max_number_of_steps,
        batch_size,
        lambda state: _Summaries(state, log_dir, examples, save_summaries_secs),
        save_interval_secs,
        seed,
        data_service,
        verbose,
    )
