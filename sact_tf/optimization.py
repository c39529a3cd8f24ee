"""The original's optimizer, learning rates and loss."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
import tf_keras as keras

_CIFAR_BOUNDARIES = (0.60, 0.75, 0.90)
_CIFAR_RATES = (1.0, 0.1, 0.01, 0.001)  # of the initial rate
_WARM_UP = 0.25  # of the steps of a cycle


@keras.utils.register_keras_serializable("sact_tf")
class Momentum(keras.optimizers.SGD):
    """Momentum as in TensorFlow 1: the learning rate scales accumulated raw gradients.

    `keras.optimizers.SGD` puts the rate into the accumulator, and so goes on at the old
    rate for some steps after every change. The accumulators are those of TF-Slim
    checkpoints. With `nesterov` the step looks ahead by one accumulation.
    """

    def update_step(self, gradient, variable):
        accumulator = self.momentums[self._index_dict[self._var_key(variable)]]
        accumulator.assign(self.momentum * accumulator + gradient)
        rate = tf.cast(self.learning_rate, variable.dtype)
        step = accumulator
        if self.nesterov:
            step = self.momentum * accumulator + gradient
        variable.assign_sub(rate * step)


def cifar_learning_rate(
    max_number_of_steps: int,
    boundaries: Sequence[int] | None = None,
    initial: float = 0.1,
) -> keras.optimizers.schedules.PiecewiseConstantDecay:
    """Returns the schedule: 0.1, a tenth of it after 60, 75 and 90 % of the steps.

    Args:
        max_number_of_steps: Steps of the whole run.
        boundaries: The last steps at rates 0.1, 0.01 and 0.001, instead.
        initial: The rate at first.

    Raises:
        ValueError: `boundaries` are not three increasing numbers.
    """
    if not boundaries:
        boundaries = [round(max_number_of_steps * share) for share in _CIFAR_BOUNDARIES]
    boundaries = list(boundaries)
    if len(boundaries) != 3 or boundaries != sorted(boundaries):
        raise ValueError(f"boundaries must be 3 increasing steps; got {boundaries}")
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        boundaries, [initial * rate for rate in _CIFAR_RATES]
    )


def iterative_learning_rate(
    max_number_of_steps: int,
    boundaries: Sequence[int] | None = None,
    initial: float = 0.01,
) -> keras.optimizers.schedules.PiecewiseConstantDecay:
    """Returns the schedule of iterative networks: 0.01, a tenth of it at each third.

    As in the papers (150 epochs of CIFAR-10, 90 of ImageNet), for runs of any length.

    Args:
        max_number_of_steps: Steps of the whole run.
        boundaries: The last steps at rates 0.01 and 0.001, instead.
        initial: The rate at first.

    Raises:
        ValueError: `boundaries` are not two increasing numbers.
    """
    if not boundaries:
        boundaries = [round(max_number_of_steps * k / 3) for k in (1, 2)]
    boundaries = list(boundaries)
    if len(boundaries) != 2 or boundaries != sorted(boundaries):
        raise ValueError(f"boundaries must be 2 increasing steps; got {boundaries}")
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        boundaries, [initial * rate for rate in _CIFAR_RATES[:-1]]
    )


def smooth_learning_rate(
    max_number_of_steps: int, peak: float, warm_up: bool
) -> keras.optimizers.schedules.CosineDecay:
    """Returns a schedule for short runs: half a cosine from `peak` down to 0.

    Args:
        max_number_of_steps: Steps of the whole run.
        peak: The highest rate.
        warm_up: Whether the first quarter of the steps rises linearly from 0 to `peak`:
            one cycle (Smith and Topin, 2018).
    """
    rising = round(_WARM_UP * max_number_of_steps) if warm_up else 0
    return cosine_learning_rate(max_number_of_steps, peak, rising)


def cosine_learning_rate(
    max_number_of_steps: int, peak: float, warmup_steps: int = 0
) -> keras.optimizers.schedules.CosineDecay:
    """Returns half a cosine from `peak` to 0, after steps that rise to it linearly."""
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else peak,
        max(max_number_of_steps - warmup_steps, 1),
        warmup_target=peak if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def imagenet_learning_rate(
    num_examples: int,
    batch_size: int = 32,
    initial: float = 0.05,
    decay_factor: float = 0.1,
    num_epochs_per_decay: float = 30.0,
) -> keras.optimizers.schedules.ExponentialDecay:
    """Returns the schedule of the original's ImageNet training: a staircase.

    Args:
        num_examples: Training images, which make an epoch.
        batch_size: Images per step.
        initial: The rate at first.
        decay_factor: Multiplies the rate at the end of every stair.
        num_epochs_per_decay: Length of a stair.
    """
    decay_steps = max(int(num_examples / batch_size * num_epochs_per_decay), 1)
    return keras.optimizers.schedules.ExponentialDecay(
        initial, decay_steps, decay_factor, staircase=True
    )


@keras.utils.register_keras_serializable("sact_tf")
class CrossEntropy(keras.losses.Loss):
    """Cross-entropy of logits [batch, classes] and labels [batch].

    Args:
        label_smoothing: Probability that is spread evenly over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0, name: str = "cross_entropy"):
        super().__init__(name=name)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        labels = tf.reshape(tf.cast(y_true, tf.int32), [-1])
        targets = tf.one_hot(labels, tf.shape(y_pred)[-1])
        return keras.losses.categorical_crossentropy(
            targets, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )

    def get_config(self):
        return {"label_smoothing": self.label_smoothing, "name": self.name}
