"""Training towards a number of operations, rather than with a fixed tau."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf.domains import COUNT, Domain

_RELATIVE = Domain(0, 1)
# Of a proportional-integral controller: the factor per relative error.
_PROPORTIONAL = 60.0
_INTEGRAL = 2.0
# The integral waits for errors this small: what leads to the target from afar is no
# sign of what holds the network there.
_CLOSE = 0.1
_LARGEST = 20.0
_REMEMBERED = 10
# Times the largest factor, a larger tau outweighs whatever a network learns: one of 1
# makes it halt, or run, everywhere at once.
_LARGEST_TAU = 0.1


def spent_flops(end_points: Mapping[str, object]) -> tf.Tensor:
    """Returns what a network spends on every image, [batch].

    Where units run by chance and are weighed, what counts is how much they weigh.

    Args:
        end_points: Of the network.
    """
    return end_points.get("expected_flops", end_points["flops"])


class TargetFlops(keras.callbacks.Callback):
    """Steers tau during training so that the mean operations reach a target.

    tau of all blocks is multiplied by one factor, 1 at first. The factor is large while
    the network takes more than the target; while it takes less, it is small and even
    negative, so that the network is rewarded for computing: without that, units whose
    heads have learnt to halt early come back slowly or never. Logs hold
    `relative_flops`, the mean since the factor last changed, and `tau_factor`.

    Operations are those of inference on `images`, where they are given, as
    `training.train` does; otherwise those of training steps. The two differ, because
    batch normalization uses moving averages in inference.

    The network's tau says how strongly it is steered; 0.01 is a good start.

        target = sact_tf.TargetFlops(relative=0.6)
        model.fit(images, labels, epochs=10, callbacks=[target])

    To go on after a restart, call `target.attach(model)` and keep its variables beside
    the model's: `tf.train.Checkpoint(model=model, **target.variables)`.

    Args:
        relative: Operations to reach, as a part of those of the same network if all its
            units ran everywhere.
        every: Training steps from one change of the factor to the next.
        images: [batch, height, width, 3], preprocessed as for evaluation; None: those
            of the training steps are observed, as they are trained on. Several replicas
            always observe those.

    Raises:
        ValueError: A number is none of these; or later, the network is not adaptive,
            its tau is 0 or more than 0.1, or no tau can bring it that low.
    """

    def __init__(
        self, relative: float, every: int = 10, images: tf.Tensor | None = None
    ):
        super().__init__()
        self.relative = _RELATIVE.check(relative, "relative")
        if not self.relative:
            raise ValueError("relative must be > 0; got 0")
        self.every = COUNT.check(every, "every")
        self.images = images
        self.measured = None
        self._least = None
        self._infer = None
        self._steps = 0
        self._means = collections.deque(maxlen=_REMEMBERED)
        self._network = None

    @property
    def last(self) -> float:
        """Mean relative operations of the last ten periods; NaN before the first."""
        return float(np.mean(self._means)) if self._means else math.nan

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """What it knows, by name; empty before `attach`."""
        if self._network is None:
            return {}
        return {"tau_factor": self.factor, "tau_integral": self._integral}

    def attach(self, model: keras.Model) -> None:
        """Lets the losses of a network depend on the factor; `fit` does that, too.

        Args:
            model: An adaptive network, of classification or segmentation, before it is
                traced.
        """
        if not hasattr(model, "steer"):
            raise ValueError(
                "TargetFlops needs a network of this package as the model that is fit; "
                f"got {type(model).__name__}"
            )
        if self._network is not model:
            blocks = [block for block in model.blocks if block.is_adaptive]
            if not 0 < max((block.tau for block in blocks), default=0) <= _LARGEST_TAU:
                raise ValueError(
                    "relative: needs an adaptive network with tau in "
                    f"(0, {_LARGEST_TAU}] to steer, such as 0.01; got model_type="
                    f"{model.options.model_type!r}, tau={model.options.tau}"
                )
            self._network = model
            with model.distribute_strategy.scope():
                self.factor = tf.Variable(1.0, False, name="tau_factor")
                self._integral = tf.Variable(1.0, False, name="tau_integral")
                self.measured = keras.metrics.Mean("relative_flops", tf.float64)
                self._least = keras.metrics.Mean("least_relative_flops", tf.float64)
        model.steer(self)

    def _in_inference(self) -> float:
        """Relative operations of inference on `images`."""
        if self._infer is None:
            network = self._network

            def relative(images):
                _, end_points = network.with_end_points(images, training=False)
                spent = tf.cast(spent_flops(end_points), tf.float64)
                dense = tf.cast(network.dense_flops(images), tf.float64)
                return tf.reduce_mean(spent / dense)

            self._infer = tf.function(relative)
        return float(self._infer(self.images))

    def observe(
        self, end_points: Mapping[str, object], images: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Takes in the operations of a training batch; returns logs.

        Args:
            end_points: Of the network.
            images: [batch, height, width, 3].
        """
        dense = tf.cast(self._network.dense_flops(images), tf.float64)
        least = self._network.dense_flops(images, num_units=1)
        spent = tf.cast(spent_flops(end_points), tf.float64)
        self.measured.update_state(spent / dense)
        self._least.update_state(tf.cast(least, tf.float64) / dense)
        return {
            "relative_flops": self.measured.result(),
            "tau_factor": self.factor.read_value(),
        }

    def set_model(self, model):
        super().set_model(model)
        self.attach(model)

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self._steps % self.every == 0:
            self._adjust()

    def on_train_end(self, logs=None):
        self.model.steer(None)

    def _adjust(self):
        least = float(self._least.result())
        if least > self.relative:
            raise ValueError(
                f"relative={self.relative} cannot be reached: the first unit of every "
                f"block alone takes {least:.3f}"
            )
        mean = float(self.measured.result())
        is_alone = self._network.distribute_strategy.num_replicas_in_sync == 1
        if self.images is not None and is_alone:
            mean = self._in_inference()
        self._means.append(mean)
        error = mean / self.relative - 1.0
        integral = float(self._integral.numpy())
        if abs(error) < _CLOSE:
            integral += _INTEGRAL * error
        integral = max(-_LARGEST, min(integral, _LARGEST))
        factor = max(-_LARGEST, min(integral + _PROPORTIONAL * error, _LARGEST))
        self._integral.assign(integral)
        self.factor.assign(factor)
        self.measured.reset_state()
