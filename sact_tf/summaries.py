"""When training writes summaries, and on which replica it measures for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf
import tf_keras as keras

from sact_tf import visualization
from sact_tf.end_points import metric_values


class Summaries(keras.callbacks.Callback):
    """Writes summaries after a step, but not more often than every so many seconds.

    A subclass defines `write`. Running means of training are written as `train/...`.

    Args:
        state: What tells the `step`, such as `training.TrainingState`.
        directory: Where TensorBoard's files are written.
        secs: Seconds between summaries.
    """

    def __init__(self, state, directory: str, secs: float):
        super().__init__()
        self._state = state
        self._directory = directory
        self._secs = secs
        self._writer = None
        self._functions = {}
        self._written = float("-inf")

    def on_train_batch_end(self, batch, logs=None):
        if time.monotonic() - self._written < self._secs:
            return
        self._written = time.monotonic()
        self._writer = self._writer or tf.summary.create_file_writer(self._directory)
        with self._writer.as_default(self._state.step):
            for name, value in (logs or {}).items():
                tf.summary.scalar(f"train/{name}", value)
            self.write(logs)
        self._writer.flush()

    def write(self, logs: dict[str, float]) -> None:
        """Writes what there is beside running means, with `tf.summary`."""
        raise NotImplementedError

    def write_measured(
        self, k: int, metrics: dict[str, tf.Tensor], heatmaps: Sequence[tf.Tensor]
    ) -> None:
        """Writes what `measured` gives of the k-th image."""
        for name, value in metrics.items():
            tf.summary.scalar(f"image_{k}/{name}", value)
        for heatmap in heatmaps:
            tf.summary.image(f"heatmaps/{k}", heatmap)

    def on_one_replica(self, measure: Callable[..., object], *args):
        """Returns what a function gives on one replica of this process.

        So no other process is waited for: outside of replicas, reading moving averages
        would ask all workers for theirs.

        Args:
            measure: Function of `args` that returns tensors, nested in any way.
            *args: Tensors.
        """
        strategy = self.model.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return measure(*args)
        if measure not in self._functions:
            self._functions[measure] = tf.function(
                lambda *args: strategy.run(measure, args), reduce_retracing=True
            )
        return tf.nest.map_structure(
            lambda values: strategy.experimental_local_results(values)[0],
            self._functions[measure](*args),
        )


def measured(
    end_points: Mapping[str, tf.Tensor],
) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
    """Returns means of an image's metrics, and its heat map if there is one."""
    metrics = {
        name: tf.reduce_mean(tf.cast(values, tf.float32))
        for name, values in metric_values(end_points).items()
    }
    has_maps = visualization.has_maps(end_points)
    return metrics, [visualization.heatmap(end_points)] if has_maps else []


class RunningMeans(Summaries):
    """Writes the running means of training, such as loss and accuracy, and the rate."""

    def write(self, logs):
        tf.summary.scalar("Learning Rate", self.model.optimizer.learning_rate)
