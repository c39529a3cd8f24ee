"""Recurrent visual attention (RAM), and DT-RAM, which decides when to stop.

A network that looks at an image through small windows, "glimpses" (Mnih et al., 2014):

    h_t = relu(fusion(glimpse(x, l_t), l_t) + A h_(t-1)),   l_t ~ N(locator(h_(t-1)))

and answers after T of them, y = classifier(h_T). RAM has a constant T. DT-RAM (Li et
al., 2017) draws after every glimpse whether to stop, with a probability that it learns
(`sact_tf.networks.attention`). The sizes of all parts are those of the public Torch
code. That code leaves gamma out where it classifies birds and cars, and has gamma = 1
on MNIST; here it is as in the paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from sact_tf.data import inception
from sact_tf.domains import COUNT
from sact_tf.halting import ConfidenceThreshold
from sact_tf.layers import build_child
from sact_tf.networks import glimpses
from sact_tf.networks.attention import AttentionNetwork, Taken, dense, uniform_dense
from sact_tf.networks.attention_options import AttentionOptions

LOCATION_STD = 0.22
_LOCATION_SCALE = 13 / 14  # 13 of the 14 pixels from the centre of MNIST to its edge
_LARGEST_LOGIT = 10.0
_FROZEN = ("glimpse_path", "location_path", "fusion_1", "fusion_2", "recurrence")


@keras.utils.register_keras_serializable("sact_tf")
class RecurrentAttention(AttentionNetwork):
    """RAM or DT-RAM; `recurrent_attention` makes it, which see for the arguments."""

    slim_scope = "recurrent_attention"
    classifier_scopes = ("recurrent_attention/logits/",)
    looks_at_whole_first = False

    def __init__(
        self,
        num_classes: int,
        steps: int,
        dynamic: bool = True,
        gamma: float = 0.99,
        glimpse_size: int = 8,
        scales: int = 1,
        image_shape: Sequence[int] = (28, 28, 1),
        units: int = 256,
        name: str | None = None,
        trainable: bool = True,
        dtype=None,
        **options,
    ):
        super().__init__(
            num_classes,
            AttentionOptions(steps, bool(dynamic), gamma, **options),
            image_shape,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        self.glimpse_size = COUNT.check(glimpse_size, "glimpse_size")
        self.scales = COUNT.check(scales, "scales")
        self.units = COUNT.check(units, "units")
        glimpses.check_windows(self.image_shape, glimpse_size, scales)
        self._make_layers()
        self._finish(self.units)

    def _make_layers(self):
        half = max(self.units // 2, 1)
        self.location_path = uniform_dense(half, "relu", "location_path")
        self.glimpse_path = uniform_dense(half, "relu", "glimpse_path")
        self.fusion_1 = uniform_dense(self.units, "relu", "fusion_1")
        self.fusion_2 = uniform_dense(self.units, None, "fusion_2")
        self.recurrence = uniform_dense(self.units, None, "recurrence")
        self.locator = uniform_dense(2, None, "locator")
        self.classifier = uniform_dense(self.num_classes, None, "classifier")
        # Now, as its operations are told before it is asked.
        build_child(self.classifier, [None, self.units])
        self.decider_hidden = self.decider = None
        if self.is_dynamic:
            self.decider_hidden = _decider_dense(self.units, "relu", "decider_hidden")
            self.decider = _decider_dense(1, None, "decider")
            # Now, as a network of a single step would never ask it.
            build_child(self.decider_hidden, [None, self.units])
            build_child(self.decider, [None, self.units])

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their names in checkpoints."""
        scopes = {name: getattr(self, name) for name in (*_FROZEN, "locator")}
        scopes["logits"] = self.classifier
        if self.is_dynamic:
            scopes["decider/halting_proba/hidden"] = self.decider_hidden
            scopes["decider/halting_proba/score"] = self.decider
        return scopes

    def get_config(self):
        names = "num_classes glimpse_size scales image_shape units name"
        return {
            **{name: getattr(self, name) for name in names.split()},
            **dataclasses.asdict(self.options),
        }

    def freeze_attention(self) -> None:
        """Keeps all but decider, classifier and baseline: the second phase of DT-RAM.

        Compile the model after it.
        """
        for name in (*_FROZEN, "locator"):
            getattr(self, name).trainable = False

    @property
    def _output_size(self):
        return self.units

    def _prepare(self, images):
        images = tf.cast(images, self.compute_dtype)
        sizes = [self.glimpse_size * 2**k for k in range(self.scales)]
        return [glimpses.pad(images, size) for size in sizes]

    def _first_carry(self, batch):
        return tf.zeros([batch, self.units], self.compute_dtype)

    def _state(self, carry):
        return carry

    def _step(self, n, context, rows, carry, noise, training):
        place, log_p = glimpses.choose(
            self.locator(carry), noise, LOCATION_STD, _LOCATION_SCALE
        )
        seen = glimpses.look(context, rows, place, self.glimpse_size)
        seen = tf.reshape(seen, [-1, int(np.prod(seen.shape[1:]))])
        parts = [self.glimpse_path(seen), self.location_path(place)]
        x = self.fusion_2(self.fusion_1(tf.concat(parts, -1)))
        h = tf.nn.relu(x + self.recurrence(carry))
        spent = tf.fill(tf.shape(rows), tf.cast(self.flops_per_step, tf.int64))
        return Taken(h, h, place, log_p, spent)

    def _decide(self, n, carry):
        return self.decider(self.decider_hidden(carry))[:, 0]

    def _answer(self, output):
        logits = tf.cast(self.classifier(output), tf.float32)
        if self.is_dynamic:
            logits = tf.clip_by_value(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        return logits

    def _every_logits(self, taken):
        logits = self._answer(tf.stack([step.output for step in taken], 1))
        return logits, logits

    def _run_steps(self, step, left, results):
        def shapes(tensors):
            return tf.nest.map_structure(
                lambda x: tf.TensorShape([None, *x.shape[1:]]), tensors
            )

        _, left, results = tf.while_loop(
            lambda n, left, results: (n < self.steps - 1) & (tf.size(left[0]) > 0),
            lambda n, left, results: (n + 1, *step(n, left, results, False)),
            (tf.constant(0), left, results),
            shape_invariants=(
                tf.TensorShape([]),
                shapes(left),
                tf.nest.map_structure(lambda x: x.shape, results),
            ),
        )
        return step(tf.constant(self.steps - 1), left, results, True)[1]

    @property
    def flops_per_step(self) -> int:
        """Floating point operations of a glimpse, two for a multiplication and sum.

        The classifier's are counted where it is asked after every step.
        """
        layers = [getattr(self, name) for name in (*_FROZEN, "locator")]
        if self.is_dynamic:
            layers += [self.decider_hidden, self.decider]
        elif isinstance(self.rule, ConfidenceThreshold):
            layers.append(self.classifier)
        return sum(2 * int(np.prod(layer.kernel.shape)) for layer in layers)

    def preprocess(self, image: tf.Tensor) -> tf.Tensor:
        """Makes an input of an image, as in evaluation.

        Args:
            image: uint8 [height, width, 3].

        Returns:
            float32 of `image_shape`; in [0, 1] if that is grey, else in [-1, 1].
        """
        height, width, channels = self.image_shape
        if channels != 1:
            return inception.for_evaluation(image, height, width)
        grey = tf.image.rgb_to_grayscale(tf.cast(image, tf.float32) / 255.0)
        return tf.image.resize(grey, [height, width])


def _decider_dense(units, activation, name):
    # A variance of 4 / (fan_in + fan_out).
    spread = keras.initializers.VarianceScaling(2.0, "fan_avg", "untruncated_normal")
    return dense(units, activation, name, spread)


def recurrent_attention(
    num_classes: int,
    steps: int,
    dynamic: bool = True,
    gamma: float = 0.99,
    glimpse_size: int = 8,
    scales: int = 1,
    **options,
) -> RecurrentAttention:
    """Makes a RAM, or a DT-RAM.

    Compiled with an optimizer, `fit` trains all of it; `freeze_attention` leaves the
    decider and the classifier, for a DT-RAM that starts from a trained RAM.

    Args:
        num_classes: Number of classes.
        steps: Glimpses taken (RAM), or the most of them (DT-RAM).
        dynamic: Whether it decides when to stop.
        gamma: Discount of the reward for every step, in (0, 1].
        glimpse_size: Side of the window in pixels.
        scales: How many windows, each twice as wide as the one before, averaged to
            the same number of pixels.
        **options: `image_shape` (28, 28, 1); `units` (256), the size of h; `name`; and
            those of `attention_options.AttentionOptions`.

    Raises:
        ValueError: On any other value, naming the argument.

    >>> model = recurrent_attention(10, steps=3, units=8)
    >>> logits, end_points = model(tf.zeros([2, 28, 28, 1]), return_end_points=True)
    >>> logits.shape, end_points["locations"].shape
    (TensorShape([2, 10]), TensorShape([2, 3, 2]))
    """
    return RecurrentAttention(
        num_classes, steps, dynamic, gamma, glimpse_size, scales, **options
    )
