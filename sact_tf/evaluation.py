"""Evaluation: accuracy, loss, operations, ponder cost and units over a data set."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf.end_points import metric_values
from sact_tf.halting import HaltingRule
from sact_tf.writing import write_json  # noqa: F401 (as which it was known here)


@dataclasses.dataclass
class Moments:
    """Mean and unbiased deviation of values in parts (Chan et al., 1979).

    Attributes:
        count: How many values there were.
        mean: Their mean.
        largest: The largest of them.
        smallest: The smallest.
    """

    count: int = 0
    mean: float = 0.0
    largest: float = -math.inf
    smallest: float = math.inf
    _squares: float = 0.0  # sum of squared distances from the mean

    def add(self, values: np.ndarray) -> None:
        """Takes in an array of any shape."""
        values = np.asarray(values, np.float64)
        if not values.size:
            return
        mean = values.mean()
        total = self.count + values.size
        delta = mean - self.mean
        self._squares += np.square(values - mean).sum()
        self._squares += delta**2 * self.count * values.size / total
        self.mean += delta * values.size / total
        self.count = total
        self.largest = max(self.largest, float(values.max()))
        self.smallest = min(self.smallest, float(values.min()))

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 0 for a single value."""
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else 0.0


def used_units(
    moments: Mapping[str, Moments], blocks: Iterable[keras.layers.Layer]
) -> dict[str, int]:
    """Tells which units of a data set's adaptive blocks ran at all.

    Units run in order, so a block uses its first ones. A unit is dead if no image, and
    no position of one, ever runs it.

    Args:
        moments: By metric; those of `<block>/num_units` are read.
        blocks: The network's blocks.

    Returns:
        `<block>/num_units_max`, the most units that anything ran, and
        `<block>/dead_units`, how many units are dead.
    """
    results = {}
    for block in blocks:
        name = f"{block.name}/num_units"
        if name in moments:
            used = int(moments[name].largest)
            results[f"{name}_max"] = used
            results[f"{block.name}/dead_units"] = len(block.units) - used
    return results


def units_of_images(end_points: Mapping[str, object]) -> tf.Tensor | None:
    """Returns how many units every image of a batch ran, of all blocks together.

    Returns:
        Int32 [batch]; None where images do not halt as a whole.
    """
    names = [f"{block}/num_units" for block in end_points["block_scopes"]]
    units = [end_points[name] for name in names if name in end_points]
    if not units or any(values.shape.rank != 1 for values in units):
        return None
    return tf.add_n(units)


def seconds_per_image(model: keras.Model, images: Iterable[tf.Tensor]) -> np.ndarray:
    """Times a network on images, one at a time.

    Args:
        model: Residual network of this package.
        images: float32 [height, width, 3] each, of one size, preprocessed.

    Returns:
        Seconds, [images]. Each is the least of three runs.
    """

    @tf.function
    def run(images):
        return model(images, training=False)

    seconds = []
    for image in images:
        batch = image[tf.newaxis]
        if not seconds:
            for _ in range(3):  # traces, and warms up
                run(batch).numpy()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            run(batch).numpy()
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return np.array(seconds)


def batch_seed(seed: int, sample: int, batch: int) -> tf.Tensor:
    """Returns the seed, int32 [2], of a batch in one of several samples."""
    seed = tf.constant([seed, batch], tf.int32)
    return tf.random.experimental.stateless_fold_in(seed, sample)


def evaluate(
    model: keras.Model,
    batches: tf.data.Dataset,
    recall_at: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluates a network; every image counts once.

    Args:
        model: Residual network of this package.
        batches: Batches of preprocessed images and int labels.
        recall_at: k: also tell how often the label is among the k likeliest classes.
        seed: Of networks that stop by chance.

    Returns:
        By the original's names: `eval/Accuracy`, `eval/Mean Loss` (cross-entropy,
        weight decay and tau times ponder cost), `eval/Recall@k`; `Total Flops/mean` and
        `/std` over images, and for every block
        `<block>/{ponder_cost,num_units,flops}_{mean,std}`, over all positions in a SACT
        network; of iterative networks `Total Macs/{mean,std,min,max}`. Standard
        deviations are unbiased and those of the whole set. Also what `used_units`
        tells.

    Raises:
        ValueError: There are no images.
    """

    @tf.function(reduce_retracing=True)
    def run(images, labels, seed):
        logits, end_points = model.with_end_points(images, training=False, seed=seed)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        # The other losses are means over the batch.
        losses = cross_entropy + tf.add_n(
            [tf.cast(x, tf.float32) for x in model.losses]
        )
        correct = tf.equal(tf.argmax(logits, -1), tf.cast(labels, tf.int64))
        recalled = tf.constant([], tf.bool)
        if recall_at is not None:
            k = min(recall_at, logits.shape[-1])
            recalled = tf.math.in_top_k(tf.cast(labels, tf.int32), logits, k)
        return losses, correct, recalled, metric_values(end_points)

    loss, accuracy, recall = Moments(), Moments(), Moments()
    moments: dict[str, Moments] = {}
    for k, (images, labels) in enumerate(batches):
        losses, correct, recalled, values = run(images, labels, batch_seed(seed, 0, k))
        recall.add(recalled.numpy())
        loss.add(losses.numpy())
        accuracy.add(correct.numpy())
        for name, value in values.items():
            moments.setdefault(name, Moments()).add(value.numpy())
    if not accuracy.count:
        raise ValueError("nothing to evaluate: the data set has no images")
    results = {"eval/Accuracy": accuracy.mean, "eval/Mean Loss": loss.mean}
    if recall_at is not None:
        results[f"eval/Recall@{recall_at}"] = recall.mean
    for name, value in moments.items():
        separator = "/" if name in ("Total Flops", "Total Macs") else "_"
        results[f"{name}{separator}mean"] = value.mean
        results[f"{name}{separator}std"] = value.std
        if name == "Total Macs":
            results[f"{name}/min"] = value.smallest
            results[f"{name}/max"] = value.largest
    return {**results, **used_units(moments, model.blocks)}


def evaluate_modes(
    model: keras.Model,
    make_batches: Callable[[], tf.data.Dataset],
    num_samples: int = 5,
    seed: int = 0,
    per_image: bool = False,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Evaluates a network in every way to stop that its halting rule has.

    Args:
        model: Residual network of this package.
        make_batches: Returns batches of preprocessed images and int labels, the same
            every time.
        num_samples: How often the discrete mode is sampled; others are run once.
        seed: Of all that is drawn.
        per_image: Whether a network without such ways is evaluated too, in its own.

    Returns:
        `<mode>/<key>` for the keys `Accuracy`, `Log Loss` (cross-entropy), `Flops`, and
        where blocks tell them `Expected Flops`; of the discrete mode the mean over its
        samples, and `<mode>/<key> std` over them. And the same of all images, float32
        [images], by `<mode>/<key>` (in discrete mode of the first sample); of networks
        without such ways by `network/<key>`.
    """
    images = {}

    def evaluate(network, sample, name):
        values = _run_all(_mode_function(network), make_batches(), seed, sample)
        if sample == 0:
            images.update({f"{name}/{key}": value for key, value in values.items()})
        return {key: np.mean(value, dtype=np.float64) for key, value in values.items()}

    results = in_all_modes(model, model.options.make_rule(), evaluate, num_samples)
    if per_image and not images:
        evaluate(model, 0, "network")
    return results, images


def in_all_modes(
    model: keras.Model,
    rule: HaltingRule | None,
    evaluate: Callable[[keras.Model, int, str], Mapping[str, float]],
    num_samples: int = 5,
) -> dict[str, float]:
    """Evaluates a model in every way to stop that its halting rule has.

    Args:
        model: With `with_options`.
        rule: Of it; None: it has no such ways.
        evaluate: Takes a copy of the model in a mode, the number of the sample, and the
            mode; returns numbers by name.
        num_samples: How often the discrete mode is sampled; others are run once.

    Returns:
        The numbers by `<mode>/<name>`; of the discrete mode their means over samples,
        and deviations by `<mode>/<name> std`.
    """
    results = {}
    for mode in rule.test_modes if rule is not None else ():
        network = model.with_options(test_mode=mode)
        count = num_samples if mode == "discrete" else 1
        samples = [evaluate(network, k, mode) for k in range(count)]
        for key in samples[0]:
            values = Moments()
            values.add([sample[key] for sample in samples])
            results[f"{mode}/{key}"] = values.mean
            if mode == "discrete":
                results[f"{mode}/{key} std"] = values.std
    return results


def _mode_function(model):
    """Returns the function from a batch and a seed to what is told of its images."""

    @tf.function(reduce_retracing=True)
    def run(images, labels, seed):
        logits, end_points = model.with_end_points(images, training=False, seed=seed)
        values = {
            "Accuracy": tf.equal(tf.argmax(logits, -1), tf.cast(labels, tf.int64)),
            "Log Loss": tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits),
            "Flops": end_points["flops"],
        }
        if "expected_flops" in end_points:
            values["Expected Flops"] = end_points["expected_flops"]
        units = units_of_images(end_points)
        return values if units is None else {**values, "Units": units}

    return run


def _run_all(run, batches, seed, sample):
    parts = [
        run(images, labels, batch_seed(seed, sample, k))
        for k, (images, labels) in enumerate(batches)
    ]
    return {
        key: np.concatenate([part[key].numpy() for part in parts]).astype(np.float32)
        for key in parts[0]
    }
