"""Fine-grained recurrent attention: a residual network for every glimpse.

Li et al. (2017), section on fine-grained recognition, with the details of the public
Torch code. Step 1 sees the whole image, every later one a crop in detail:

    h_1 = f_1(x),   h_t = relu(f_t(crop(x, l_t)) + A_t h_(t-1)),   l_t ~ N(g_t(h_(t-1)))

f_t are networks of their own, with A_t, the locator g_t, a classifier o_t and, where
the network decides when to stop, a decider that reads o_t. After T steps it answers

    o_1 + mean of o_2 ... o_T

Only steps taken count. (In the public code masked states still pass through later
classifiers, whose biases then are part of the answer.) Every place is rewarded by
whether its own step's classifier is right; stops by gamma^T if the answer is, where the
public code leaves gamma out.

Training as published grows the network step by step (`start_from`), from the third step
on without changing the earlier ones (`freeze_earlier_steps`); then only the deciders
are trained (`freeze_attention`).
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import tensorflow as tf
import tf_keras as keras

from sact_tf.checkpoints import (
    CheckpointMismatchError,
    network_variables,
    open_checkpoint,
    read_tensors,
    slim_variables,
)
from sact_tf.domains import COUNT, INPUT_SIDE
from sact_tf.layers import build_child
from sact_tf.networks import glimpses
from sact_tf.networks.attention import AttentionNetwork, Taken, dense, uniform_dense
from sact_tf.networks.attention_options import AttentionOptions
from sact_tf.networks.network import Network

LOCATION_STD = 0.24
_LOCATION_SCALE = 150 / 224  # crops then nearly stay inside of the image
_GLIMPSE_SHARE = 100 / 224  # of the image's side
_DECIDER_UNITS = 256
_LARGEST_LOGIT = 10.0


class _Carry(NamedTuple):
    """What a step hands on: its state and logits, those of step 1, sum of the later."""

    h: tf.Tensor
    own: tf.Tensor
    first: tf.Tensor
    later: tf.Tensor


@keras.utils.register_keras_serializable("sact_tf")
class AttentionStep(keras.layers.Layer):
    """All layers of one step.

    Args:
        backbone: Maps images to features [batch, channels].
        channels: Of the features.
        num_classes: Of the classifier.
        is_first: Whether it sees the whole image, so that it has no locator.
        dynamic: Whether it has a decider.
        name: Keras name of the layer.
    """

    def __init__(
        self,
        backbone: Network,
        channels: int,
        num_classes: int,
        is_first: bool,
        dynamic: bool,
        name: str,
    ):
        super().__init__(name=name)
        self.backbone = backbone
        self.classifier = dense(num_classes, None, "classifier", _of_torch())
        self.locator_hidden = self.locator = self.recurrence = None
        if not is_first:
            half = max(channels // 2, 1)
            self.locator_hidden = uniform_dense(half, "tanh", "locator_hidden")
            self.locator = uniform_dense(2, None, "locator")
            self.recurrence = dense(channels, None, "recurrence", _of_torch())
        self.decider_hidden = self.decider = None
        if dynamic:
            # A standard deviation of sqrt(1 / fan_in).
            spread = [
                keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal")
                for _ in range(2)
            ]
            self.decider_hidden = dense(
                _DECIDER_UNITS, "tanh", "decider_hidden", spread[0]
            )
            self.decider = dense(1, None, "decider", spread[1])
        # Now, as in inference steps that no image takes are not run.
        with tf.name_scope(name):
            build_child(self.classifier, [None, channels])
            if not is_first:
                for layer in (self.locator_hidden, self.recurrence):
                    build_child(layer, [None, channels])
                build_child(self.locator, [None, half])
            if dynamic:
                build_child(self.decider_hidden, [None, num_classes])
                build_child(self.decider, [None, _DECIDER_UNITS])

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their names in checkpoints."""
        scopes = {
            "network": self.backbone,
            "recurrence": self.recurrence,
            "locator/hidden": self.locator_hidden,
            "locator/place": self.locator,
            "logits": self.classifier,
            "decider/halting_proba/hidden": self.decider_hidden,
            "decider/halting_proba/score": self.decider,
        }
        return {name: layer for name, layer in scopes.items() if layer is not None}

    def freeze(self, all_of_it: bool) -> None:
        """Leaves nothing to be trained, or the decider alone."""
        for layer in self.slim_scopes.values():
            layer.trainable = False
        if not all_of_it and self.decider is not None:
            self.decider_hidden.trainable = self.decider.trainable = True

    def features(self, images, training):
        """Returns features [batch, channels] and FLOPs int64 [batch]."""
        training = training and self.backbone.trainable
        if training:
            x = self.backbone(images, training=True)
            return x, tf.zeros([tf.shape(images)[0]], tf.int64)
        x, end_points = self.backbone.with_end_points(images, training=False)
        return x, end_points["flops"]

    def locate(self, h):
        """Returns the mean of the place that a state asks for, [n, 2]."""
        return self.locator(self.locator_hidden(h))

    def decide(self, logits):
        """Returns the logit of stopping, [n]; the classifier learns nothing from it."""
        x = self.decider_hidden(tf.tanh(tf.stop_gradient(logits)))
        logit = tf.cast(self.decider(x)[:, 0], tf.float32)
        return tf.clip_by_value(logit, -_LARGEST_LOGIT, _LARGEST_LOGIT)

    @property
    def flops_of_layers(self) -> int:
        """Floating point operations of all but the backbone, two for a multiply-add."""
        layers = [x for k, x in self.slim_scopes.items() if k != "network"]
        return sum(2 * int(x.kernel.shape[0] * x.kernel.shape[1]) for x in layers)


def _of_torch():
    """How Torch draws the weights of its linear layers."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")


@keras.utils.register_keras_serializable("sact_tf")
class FineGrainedAttention(AttentionNetwork):
    """See `fine_grained_attention`, which makes it, for the arguments."""

    slim_scope = "fine_grained_attention"
    looks_at_whole_first = True

    def __init__(
        self,
        num_classes: int,
        backbone: Network,
        steps: int,
        dynamic: bool = True,
        gamma: float = 0.99,
        image_size: int = 224,
        glimpse_size: int | None = None,
        resized_to: int | None = None,
        name: str | None = None,
        trainable: bool = True,
        dtype=None,
        stop_threshold: float = 0.5,
        intermediate_supervision: bool = True,
        **options,
    ):
        if isinstance(backbone, dict):  # of `get_config`
            backbone = keras.saving.deserialize_keras_object(backbone)
        side = INPUT_SIDE.check(image_size, "image_size")
        super().__init__(
            num_classes,
            AttentionOptions(
                steps,
                bool(dynamic),
                gamma,
                stop_threshold=stop_threshold,
                intermediate_supervision=bool(intermediate_supervision),
                **options,
            ),
            (side, side, 3),
            name=name,
            trainable=trainable,
            dtype=dtype,
        )
        if self.options.curriculum_steps is not None:
            raise ValueError(
                "curriculum_steps must be None: this network grows by start_from; got "
                f"{self.options.curriculum_steps}"
            )
        if glimpse_size is None:
            glimpse_size = max(round(_GLIMPSE_SHARE * side), 1)
        self.glimpse_size = COUNT.check(glimpse_size, "glimpse_size")
        resized_to = side if resized_to is None else resized_to
        self.resized_to = INPUT_SIDE.check(resized_to, "resized_to")
        glimpses.check_windows(self.image_shape, self.glimpse_size, 1)
        backbone = _as_features(backbone)
        self.channels = backbone.block_specs[-1].channels
        self.attention_steps = [
            AttentionStep(
                backbone if n == 0 else _clone(backbone),
                self.channels,
                self.num_classes,
                n == 0,
                self.is_dynamic,
                f"step_{n + 1}",
            )
            for n in range(self.steps)
        ]
        self._finish(self.channels)

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """Layers by their names in checkpoints."""
        return {step.name: step for step in self.attention_steps}

    @property
    def classifier_scopes(self) -> tuple[str, ...]:
        """Beginnings of the names of variables that depend on the classes."""
        steps = [f"{self.slim_scope}/{step.name}" for step in self.attention_steps]
        names = ("logits", "decider/halting_proba")
        return tuple(f"{step}/{name}/" for step in steps for name in names)

    def get_config(self):
        names = "num_classes glimpse_size resized_to name"
        return {
            **{name: getattr(self, name) for name in names.split()},
            **dataclasses.asdict(self.options),
            "image_size": self.image_shape[0],
            "backbone": keras.saving.serialize_keras_object(
                self.attention_steps[0].backbone
            ),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)

    def freeze_attention(self) -> None:
        """Keeps deciders and baseline alone: the dynamic phase.

        Compile the model after it.
        """
        for step in self.attention_steps:
            step.freeze(all_of_it=False)

    def freeze_earlier_steps(self) -> None:
        """Keeps the last step alone, as the curriculum does from the third step on.

        Compile the model after it.
        """
        for step in self.attention_steps[:-1]:
            step.freeze(all_of_it=True)

    def start_from(self, path: str) -> list[str]:
        """Loads a network of as many steps, or one fewer, which then grows by a step.

        As published: the new step's network, recurrence and locator are clones of the
        step before, where that has them; its classifier is new. Of a network of one
        step the classifier is dropped. Deciders stay as initialised where the
        checkpoint has none.

        Args:
            path: Checkpoint prefix, or a directory, whose latest checkpoint is taken.

        Returns:
            The names of the variables loaded or cloned.

        Raises:
            FileNotFoundError: There is no readable checkpoint.
            CheckpointMismatchError: It does not fit.
            ValueError: It is of another number of steps; names steps.
        """
        path, reader = open_checkpoint(path)
        stored = network_variables(reader)
        found = _num_steps(stored, self.slim_scope)
        wanted = slim_variables(self)
        if found not in (0, self.steps, self.steps - 1):
            raise ValueError(
                f"steps must be {found} or {found + 1}, as {path} is of {found} steps; "
                f"got {self.steps}"
            )
        root = f"{self.slim_scope}/step_"
        sources = {name: name for name in wanted}
        if not any("/decider/" in name for name in stored):
            sources = {n: s for n, s in sources.items() if "/decider/" not in n}
        passed_over = set()
        if found == self.steps - 1:
            last = f"{root}{self.steps}/"
            before = f"{root}{found}/"
            for name in [n for n in sources if n.startswith(last)]:
                sources[name] = before + name[len(last) :]
                if "/logits/" in name or sources[name] not in stored:
                    del sources[name]
            if found == 1:
                passed_over = {n for n in stored if n.startswith(f"{root}1/logits/")}
                sources = {n: s for n, s in sources.items() if s not in passed_over}
        taken = {source: wanted[name] for name, source in sources.items()}
        _check(path, stored, taken, passed_over)
        values = read_tensors(path, reader, sorted(set(sources.values())))
        for name, source in sources.items():
            wanted[name].assign(values[source])
        return sorted(sources)

    @property
    def _output_size(self):
        return self.num_classes

    def _prepare(self, images):
        images = tf.cast(images, self.compute_dtype)
        return images, [glimpses.pad(images, self.glimpse_size)]

    def _first_carry(self, batch):
        logits = tf.zeros([batch, self.num_classes], self.compute_dtype)
        h = tf.zeros([batch, self.channels], self.compute_dtype)
        return _Carry(h, logits, logits, logits)

    def _state(self, carry):
        return carry.h

    def _step(self, n, context, rows, carry, noise, training):
        images, padded = context
        step = self.attention_steps[n]
        if n == 0:
            seen = images if training else tf.gather(images, rows)
            h, flops = step.features(seen, training)
            place, log_p = tf.zeros([tf.shape(rows)[0], 2]), None
        else:
            place, log_p = glimpses.choose(
                step.locate(carry.h), noise, LOCATION_STD, _LOCATION_SCALE
            )
            seen = glimpses.look(padded, rows, place, self.glimpse_size)
            if self.resized_to != self.glimpse_size:
                side = [self.resized_to] * 2
                seen = tf.cast(tf.image.resize(seen, side), images.dtype)
            x, flops = step.features(seen, training)
            h = tf.nn.relu(x + step.recurrence(carry.h))
        own = step.classifier(h)
        first, later = carry.first, carry.later
        if n == 0:
            first, output = own, own
        else:
            later += own
            output = first + later / n
        flops += step.flops_of_layers
        return Taken(_Carry(h, own, first, later), output, place, log_p, flops)

    def _decide(self, n, carry):
        return self.attention_steps[n].decide(carry.own)

    def _answer(self, output):
        return tf.cast(output, tf.float32)

    def _every_logits(self, taken):
        own = tf.stack([step.carry.own for step in taken], 1)
        answers = tf.stack([step.output for step in taken], 1)
        return tf.cast(own, tf.float32), tf.cast(answers, tf.float32)

    def _rewards(self, end_points, labels):
        if self.is_dynamic:
            return super()._rewards(end_points, labels)
        own = tf.argmax(end_points["own_logits"], -1, tf.int32)
        return tf.cast(tf.equal(own, labels[:, tf.newaxis]), tf.float32)

    def _run_steps(self, step, left, results):
        for n in range(self.steps):
            is_last = n == self.steps - 1
            if n == 0:
                left, results = step(n, left, results, is_last)
                continue
            left, results = tf.cond(
                tf.size(left[0]) > 0,
                lambda n=n, left=left, results=results, is_last=is_last: step(
                    n, left, results, is_last
                ),
                lambda left=left, results=results: (left, results),
            )
        return results

    def preprocess(self, image: tf.Tensor) -> tf.Tensor:
        """Makes an input of an image, as the backbone does in evaluation.

        Args:
            image: uint8 [height, width, 3].
        """
        backbone = self.attention_steps[0].backbone
        return backbone.preprocess(image, self.image_shape[0])


def _as_features(backbone):
    """Returns a network that ends in averaged features, with the same weights."""
    if not isinstance(backbone, Network):
        raise ValueError(
            "backbone must be a network of this package, such as "
            f"sact_tf.imagenet_resnet(...); got {type(backbone).__name__}"
        )
    rule = backbone.options.make_rule()
    if rule is not None and (rule.scores_samples or rule.averages_losses):
        raise ValueError(
            "backbone must be one that its own loss trains, without REINFORCE and not "
            f"on the losses of all units; got model_type {backbone.options.model_type}"
        )
    config = backbone.get_config()
    if not config["num_classes"] and config["pooling"] is not None:
        return backbone
    pooling = config["pooling"] or "avg"
    made = type(backbone).from_config({**config, "num_classes": 0, "pooling": pooling})
    stored = slim_variables(backbone)
    for name, variable in slim_variables(made).items():
        variable.assign(stored[name])
    return made


def _clone(backbone):
    config = {**backbone.get_config(), "name": None}
    made = type(backbone).from_config(config)
    made.set_weights(backbone.get_weights())
    return made


def _num_steps(names, scope):
    """Returns of how many steps a checkpoint is, 0 if it is another network's."""
    numbers = [re.match(rf"{scope}/step_(\d+)/", name) for name in names]
    return max((int(match[1]) for match in numbers if match), default=0)


def _check(path, stored, taken, passed_over):
    """Raises CheckpointMismatchError unless what is taken fits, and all is taken."""
    missing = set(taken) - set(stored)
    unused = set(stored) - set(taken) - passed_over
    wrong_shape = [
        (name, list(stored[name]), variable.shape.as_list())
        for name, variable in taken.items()
        if name in stored and list(stored[name]) != variable.shape.as_list()
    ]
    if missing or unused or wrong_shape:
        raise CheckpointMismatchError(path, missing, unused, wrong_shape)


def fine_grained_attention(
    num_classes: int,
    backbone: Network,
    steps: int,
    dynamic: bool = True,
    gamma: float = 0.99,
    **options,
) -> FineGrainedAttention:
    """Makes a network that sees the whole image, then crops of it in detail.

    Args:
        num_classes: Number of classes.
        backbone: Network of step 1, and after which those of all others are cloned:
            any of this package, adaptive or not, such as `sact_tf.imagenet_resnet("50",
            num_classes=0, pooling="avg")`. A classifier is left out.
        steps: Steps taken, or the most of them; the whole image is the first.
        dynamic: Whether it decides when to stop.
        gamma: Discount of the reward for every step, in (0, 1].
        **options: `image_size` (224), the side of images; `glimpse_size`, that of crops
            of them (100 of 224 pixels); `resized_to`, to which crops are resized
            (`image_size`); `name`; and those of `attention_options.AttentionOptions`,
            where `stop_threshold` is 0.5 and `intermediate_supervision` True by
            default.

    Raises:
        ValueError: On any other value, naming the argument.
    """
    return FineGrainedAttention(num_classes, backbone, steps, dynamic, gamma, **options)
