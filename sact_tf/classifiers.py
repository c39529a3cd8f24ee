"""Training and scoring of any `tf_keras` classifier, not only this package's networks.

A classifier maps images to logits or probabilities, [batch, classes].
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf import training
from sact_tf.optimization import CrossEntropy, Momentum, cosine_learning_rate
from sact_tf.summaries import RunningMeans

_WARMUP_SHARE = 0.05  # of the steps, in which the rate rises to its largest


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a model ends in softmax, as those of Keras Applications do."""
    history = getattr(model.outputs[0], "_keras_history", None)
    layer = model.layers[-1] if history is None else history.layer
    if isinstance(layer, keras.Model):
        return gives_probabilities(layer)
    is_softmax = getattr(layer, "activation", None) is keras.activations.softmax
    return is_softmax or isinstance(layer, keras.layers.Softmax)


def log_loss(model: keras.Model, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy of every image, float32 [batch].

    Args:
        model: Tells whether outputs are logits or probabilities.
        labels: int [batch].
        outputs: The model's, [batch, classes].
    """
    outputs = tf.cast(outputs, tf.float32)
    if gives_probabilities(model):
        return keras.losses.sparse_categorical_crossentropy(labels, outputs)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)


def check_labels(model: keras.Model, num_classes: int) -> None:
    """Checks that a model is a classifier of so many classes.

    Raises:
        ValueError: It is none.
    """
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[1] != num_classes:
        raise ValueError(
            f"model gives outputs of shape {shape}; expected (None, {num_classes}) for "
            f"examples of {num_classes} classes"
        )


def in_precision(model: keras.Model, policy: str) -> keras.Model:
    """Returns a Functional or Sequential model that computes in another precision.

    Args:
        model: Its weights are copied; the layers are new, under the same names.
        policy: Name of a Keras policy, such as "mixed_bfloat16".

    >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])
    >>> (layer,) = in_precision(model, "mixed_bfloat16").layers
    >>> layer.compute_dtype, layer.kernel.dtype
    ('bfloat16', tf.float32)
    """

    def remake(layer):
        config = {**layer.get_config(), "dtype": policy}
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=remake)
    copy.set_weights(model.get_weights())
    return copy


def cosine_rate(
    learning_rate: float, num_steps: int
) -> keras.optimizers.schedules.CosineDecay:
    """Returns a rate that rises in the first 5 % of the steps and falls as a cosine."""
    warmup = int(num_steps * _WARMUP_SHARE)
    return cosine_learning_rate(num_steps, learning_rate, warmup)


def train(
    model: keras.Model,
    examples,
    log_dir: str,
    num_steps: int,
    *,
    batch_size: int = 128,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 0.1,
    momentum: float = 0.9,
    save_interval_secs: float = 60,
    save_summaries_secs: float = 60,
    seed: int | None = None,
    jit_compile: bool = False,
    data_service: str | None = None,
    verbose: bool = True,
) -> str:
    """Trains a classifier with momentum; goes on where a run was stopped.

    Args:
        model: Any classifier; all its trainable weights are trained.
        examples: Training examples, as of `sact_tf.training.train`.
        log_dir: Where checkpoints and TensorBoard summaries are written, and read when
            a run goes on.
        num_steps: Steps of the whole run.
        batch_size: Images per step.
        learning_rate: A constant rate or a schedule.
        momentum: Of the optimizer.
        save_interval_secs: Seconds between checkpoints.
        save_summaries_secs: Seconds between summaries.
        seed: Of shuffling and augmentation.
        jit_compile: Whether XLA compiles the training step.
        data_service: As of `sact_tf.training.train`.
        verbose: Whether to show steps, speed and running means.

    Returns:
        Prefix of the last checkpoint.

    Raises:
        ValueError: The examples are of other classes than the model's, and whatever
            `sact_tf.training.fit` raises.
    """
    check_labels(model, examples.num_classes)
    loss = CrossEntropy()
    if gives_probabilities(model):
        loss = keras.losses.SparseCategoricalCrossentropy()
    with model.distribute_strategy.scope():
        model.compile(
            Momentum(learning_rate, momentum=momentum),
            loss,
            metrics=[keras.metrics.SparseCategoricalAccuracy("accuracy")],
            jit_compile=jit_compile,
        )
    return training.fit(
        model,
        examples,
        log_dir,
        num_steps,
        batch_size,
        lambda state: RunningMeans(state, log_dir, save_summaries_secs),
        save_interval_secs,
        seed,
        data_service,
        verbose,
    )


def score(
    model: keras.Model, batches: Iterable[tuple[tf.Tensor, tf.Tensor]]
) -> dict[str, float]:
    """Evaluates a classifier in inference; every image counts once.

    Args:
        model: Any classifier, or what is called like one and has its `outputs`.
        batches: Preprocessed images and int labels.

    Returns:
        `accuracy`, `loss` (cross-entropy alone), and `images`, their number.

    Raises:
        ValueError: There are no images.
    """

    @tf.function(reduce_retracing=True)
    def run(images, labels):
        outputs = model(images, training=False)
        correct = tf.argmax(outputs, -1) == tf.cast(labels, tf.int64)
        return log_loss(model, labels, outputs), correct

    losses, corrects = [], []
    for images, labels in batches:
        loss, correct = run(images, labels)
        losses.append(loss.numpy())
        corrects.append(correct.numpy())
    if not losses:
        raise ValueError("nothing to evaluate: the data set has no images")
    losses, corrects = np.concatenate(losses), np.concatenate(corrects)
    return {
        "accuracy": float(corrects.mean()),
        "loss": float(losses.mean(dtype=np.float64)),
        "images": len(losses),
    }
