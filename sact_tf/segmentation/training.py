"""Training of segmentation networks: schedule, first weights, summaries."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import optimization, training
from sact_tf.optional import lazy
from sact_tf.segmentation.data import SegmentationExamples
from sact_tf.segmentation.losses import class_weights
from sact_tf.segmentation.network import SegmentationNetwork
from sact_tf.segmentation.pictures import paint
from sact_tf.summaries import Summaries, measured
from sact_tf.target_flops import TargetFlops

lr_schedule = lazy("official.modeling.optimization.lr_schedule")

OPTIMIZERS = ("momentum", "adam")
"""What `make_optimizer` makes."""
_POWER = 0.9  # of the polynomial decay, as usual in segmentation
_DRAWN_IMAGES = 4


def learning_rate(
    max_number_of_steps: int, initial: float, warmup_steps: int = 0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule: initial * (1 - step / steps) ** 0.9, as DeepLab's.

    Args:
        max_number_of_steps: Steps of the whole run.
        initial: The rate at first.
        warmup_steps: Steps in which the rate grows from zero to that.
    """
    schedule = keras.optimizers.schedules.PolynomialDecay(
        initial, max_number_of_steps, 0.0, _POWER
    )
    if not warmup_steps:
        return schedule
    return lr_schedule.LinearWarmup(schedule, warmup_steps, 0.0)


def make_optimizer(
    name: str,
    rate: keras.optimizers.schedules.LearningRateSchedule,
    momentum: float = 0.9,
    clip_norm: float | None = None,
) -> keras.optimizers.Optimizer:
    """Makes an optimizer; to be called in the scope of the model's strategy.

    Args:
        name: One of `OPTIMIZERS`.
        rate: Schedule of learning rates.
        momentum: Of "momentum".
        clip_norm: Largest norm of all gradients together; None: any.

    Raises:
        ValueError: On another name.
    """
    if name == "momentum":
        return optimization.Momentum(rate, momentum=momentum, global_clipnorm=clip_norm)
    if name == "adam":
        return keras.optimizers.Adam(rate, global_clipnorm=clip_norm)
    raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {name!r}")


class _Summaries(Summaries):
    """Writes running means, and what the network makes of a few images."""

    def __init__(self, state, directory, examples: SegmentationExamples, secs: float):
        super().__init__(state, directory, secs)
        self._batches = list(examples.first(_DRAWN_IMAGES).evaluation_batches(1))

    def write(self, logs):
        tf.summary.scalar("Learning Rate", self.model.optimizer.learning_rate)
        for k, example in enumerate(self._batches):
            classes, metrics, heatmaps = self.on_one_replica(
                self._measure, example["image"]
            )
            self.write_measured(k, metrics, heatmaps)
            self._write_image(k, example, classes.numpy()[0])

    def _measure(self, image):
        """Returns classes, means of metrics, and the heat map if there is one."""
        logits, end_points = self.model.with_end_points(image, training=False)
        return tf.argmax(logits, -1, tf.int32), *measured(end_points)

    def _write_image(self, k, example, classes):
        pixels = ((np.clip(example["image"][0], -1, 1) + 1) * 127.5).astype(np.uint8)
        count = self.model.num_classes
        labels = tf.image.resize(
            example["labels"][0][..., np.newaxis], classes.shape, "nearest"
        )
        parts = [paint(x, count) for x in (classes, labels[..., 0].numpy())]
        tf.summary.image(
            f"predictions/{k}", np.concatenate([pixels, *parts], 1)[np.newaxis]
        )


def train(
    model: SegmentationNetwork,
    examples: SegmentationExamples,
    log_dir: str,
    max_number_of_steps: int,
    batch_size: int = 8,
    optimizer: keras.optimizers.Optimizer | None = None,
    class_weighting: str = "none",
    save_interval_secs: float = 600,
    save_summaries_secs: float = 600,
    seed: int | None = None,
    jit_compile: bool = False,
    data_service: str | None = None,
    verbose: bool = True,
    target: TargetFlops | None = None,
) -> str:
    """Trains a segmentation network, or goes on from the newest checkpoint there is.

    A network that was made in the scope of a strategy of `tf.distribute` is trained
    with it.

    Args:
        model: With `execution="masked"`.
        examples: Training images.
        log_dir: Where checkpoints and TensorBoard summaries are written.
        max_number_of_steps: Steps of the whole run, those before a resume included.
        batch_size: Crops per step, of all replicas together.
        optimizer: Any of `tf_keras`; None: momentum at the rates of `learning_rate`,
            from 0.05.
        class_weighting: One of `losses.CLASS_WEIGHTINGS`.
        save_interval_secs: Seconds between checkpoints.
        save_summaries_secs: Seconds between summaries.
        seed: Of shuffling and augmentation; None draws one.
        jit_compile: Whether XLA compiles the training step.
        data_service: Address of a tf.data service that prepares the batches.
        verbose: Whether to show steps, speed and running means as it goes.
        target: Steers tau, by the operations of training steps; its state is kept in
            the checkpoints.

    Returns:
        Prefix of the last checkpoint.

    Raises:
        TrainingError: The loss or the weights are not finite any more.
        CheckpointMismatchError: `log_dir` holds the checkpoint of another network.
        DataError: An image cannot be read.
        ValueError: The network cannot be trained, or there are fewer images than
            `batch_size`.
    """
    if model.execution != "masked":
        raise ValueError(f"execution must be 'masked' to train; got {model.execution}")
    if examples.num_classes != model.num_classes:
        raise ValueError(
            f"num_classes must be that of the network, {model.num_classes}; got "
            f"{examples.num_classes} of {examples.name}"
        )
    if class_weighting != "none":
        weights = class_weights(class_weighting, examples.class_pixels())
        model.weigh_classes([float(weight) for weight in weights])
    else:
        model.weigh_classes(None)
    with model.distribute_strategy.scope():
        if optimizer is None:
            optimizer = make_optimizer(
                "momentum", learning_rate(max_number_of_steps, 0.05)
            )
        model.compile(optimizer, jit_compile=jit_compile)
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
        target,
    )
