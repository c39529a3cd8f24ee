"""Segmentation: any network of the library, and a head on the outputs of its blocks."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from sact_tf import latent_losses
from sact_tf.domains import Domain
from sact_tf.layers import policy_of, restored, saved
from sact_tf.networks.options import NetworkOptions
from sact_tf.networks.residual_network import ResidualNetwork
from sact_tf.segmentation import losses
from sact_tf.segmentation.head import SegmentationHead
from sact_tf.segmentation.metrics import MeanIoU

HEAD = "segmentation_head"
"""Scope of the head in checkpoints."""
_CLASSES = Domain(2, 32767, is_integer=True)
_MEANS = ("loss", "cross_entropy", "pixel_accuracy", "relative_flops")


@keras.utils.register_keras_serializable("sact_tf")
class SegmentationNetwork(keras.Model):
    """Maps images of any size to the classes of their pixels.

    Its losses hold the weight decay of backbone and head, and tau times the mean ponder
    cost of every block.

    Args:
        network: The backbone, made with `num_classes=0`; or what `saved` returned of
            it. Blocks of the same stride, of which the last is taken, count as one
            scale.
        num_classes: Without void, at least 2.
        head_channels: Of the head.
        bins: Of its pyramid pooling.
        name: Keras name of the model.

    Raises:
        ValueError: On any other value, naming the argument; or the halting rule
            averages the losses of all units, which takes a classifier.
    """

    slim_scope = ""

    def __init__(
        self,
        network: ResidualNetwork | Mapping[str, Any],
        num_classes: int,
        head_channels: int = 64,
        bins: Sequence[int] = (1, 2, 3, 6),
        name: str | None = None,
        **kwargs,
    ):
        network = restored(network) if isinstance(network, Mapping) else network
        _CLASSES.check(num_classes, "num_classes")
        if network.options.num_classes:
            raise ValueError(
                "network must have no classifier (num_classes=0); got "
                f"num_classes={network.options.num_classes}"
            )
        last = network.blocks[-1]
        if last.is_adaptive and last.rule.averages_losses:
            raise ValueError(
                f"network must not be of model_type={network.options.model_type!r}, "
                "whose training averages losses of a classifier over units"
            )
        kwargs.setdefault("dtype", network.dtype_policy)
        super().__init__(name=name, **kwargs)
        self._config = types.SimpleNamespace(
            num_classes=num_classes, head_channels=head_channels, bins=tuple(bins)
        )
        self.network = network
        with policy_of(self):
            self.head = SegmentationHead(
                num_classes, head_channels, bins, network.options.weight_decay, HEAD
            )
        self._parts = types.SimpleNamespace(
            class_weights=None,
            target=None,
            metrics={
                **{key: keras.metrics.Mean(name=key) for key in _MEANS},
                "mean_iou": MeanIoU(num_classes),
            },
        )
        specs = network.block_specs
        self._scales = [
            k
            for k, spec in enumerate(specs)
            if k + 1 == len(specs) or specs[k + 1].stride > spec.stride
        ]
        shapes = [
            tf.TensorShape([None, None, None, specs[k].channels]) for k in self._scales
        ]
        with policy_of(self), tf.name_scope(self.name), tf.name_scope(HEAD):
            self.head.build(shapes)
        self.built = True

    def get_config(self):
        policy = keras.layers.Layer.get_config(self)["dtype"]
        own = {**vars(self._config), "name": self.name, "dtype": policy}
        return {"network": saved(self.network), **own}

    @property
    def num_classes(self) -> int:
        """Number of classes, without void."""
        return self._config.num_classes

    @property
    def options(self) -> NetworkOptions:
        """Of the backbone."""
        return self.network.options

    @property
    def blocks(self) -> list[keras.layers.Layer]:
        """Of the backbone."""
        return self.network.blocks

    @property
    def execution(self) -> str:
        """How blocks run in inference."""
        return self.network.execution

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """All layers by their scopes in checkpoints."""
        scopes = {
            f"{self.network.slim_scope}/{scope}": layer
            for scope, layer in self.network.slim_scopes.items()
        }
        return {**scopes, HEAD: self.head}

    @property
    def classifier_scopes(self) -> tuple[str, ...]:
        """Beginnings of the names of variables that depend on the classes."""
        return (f"{HEAD}/logits/",)

    @property
    def metrics(self):
        return list(self._parts.metrics.values())

    def training_state(self) -> dict[str, tf.Variable]:
        """As of `Network`."""
        return self.network.training_state()

    def steer(self, target) -> None:
        """As of `Network`: lets a `TargetFlops` change tau.

        Args:
            target: The callback; None: tau alone counts again.
        """
        self._parts.target = target
        self.network.steer(target)
        self.train_function = None  # which was traced without it

    def weigh_classes(self, weights: Sequence[float] | None) -> None:
        """Sets the weights of classes in the training loss; None: all count alike."""
        self._parts.class_weights = weights
        self.train_function = None

    def with_execution(self, execution: str) -> SegmentationNetwork:
        """Returns this network, or a copy of it that runs another way."""
        if execution == self.execution:
            return self
        config = {
            **self.get_config(),
            "network": self.network.with_execution(execution),
        }
        copy = type(self)(**config)
        copy.set_weights(self.get_weights())
        return copy

    def export_saved_model(self, path: str, **options) -> str:
        """Exports for serving; see `sact_tf.segmentation.exporting`."""
        from sact_tf.segmentation import exporting  # which imports what few need

        return exporting.export_saved_model(self, path, **options)

    def dense_flops(self, images: tf.Tensor, num_units: int | None = None) -> tf.Tensor:
        """Counts what an ordinary backbone of this depth takes; int64 [batch].

        Args:
            images: [batch, height, width, 3]; only the shape counts.
            num_units: Only of the first units of each block; None: of all.
        """
        return self.network.dense_flops_of_blocks(images, num_units=num_units)

    @tf.autograph.experimental.do_not_convert
    def call(
        self,
        images,
        training=None,
        return_end_points=False,
        seed=None,
        output_size=None,
    ):
        x, end_points = self.network.run_blocks(images, training, True, seed=seed)
        features = self.network.features(end_points, training)
        features = [features[k] for k in self._scales]
        logits = self.head(features, training=training)
        size = tf.shape(images)[1:3] if output_size is None else output_size
        dtype = tf.float64 if x.dtype == tf.float64 else tf.float32
        logits = tf.image.resize(tf.cast(logits, dtype), size)
        logits.set_shape([images.shape[0], *logits.shape[1:3], self.num_classes])
        if not return_end_points:
            return logits
        for name in end_points["block_scopes"]:
            del end_points[name]  # large, and not for everybody's outputs
        end_points["head_flops"] = self.head.flops(features)
        end_points["dense_flops"] = self.dense_flops(images)
        return logits, end_points

    def with_end_points(
        self,
        images: tf.Tensor,
        training: bool | None = None,
        seed: tf.Tensor | None = None,
        output_size: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, object]]:
        """Runs the network and tells what happened inside.

        Args:
            images: Float [batch, height, width, 3], as the backbone takes them.
            training: Whether batch statistics are used, and moving averages updated.
            seed: int32 [2], of networks that halt at random; None: one is drawn.
            output_size: Height and width of the result, int32 [2]; None: the images'.

        Returns:
            Logits [batch, height, width, num_classes], and end points as of
            `Network.run_blocks`, but for the outputs of blocks. `flops` and
            `dense_flops` are those of the backbone, and `head_flops` those of the head,
            int64 [batch].
        """
        return self(
            images,
            training=training,
            return_end_points=True,
            seed=seed,
            output_size=output_size,
        )

    def compiled(self) -> Callable[..., tuple[tf.Tensor, dict[str, object]]]:
        """Returns what `with_end_points` does in inference, compiled by TensorFlow.

        It takes images, and `output_size`.
        """
        names = ("block_scopes", "block_num_units")  # of Python values
        constants = {}

        @tf.function(reduce_retracing=True)
        def run(images, output_size):
            logits, end_points = self.with_end_points(
                images, training=False, output_size=output_size
            )
            constants.update({name: end_points.pop(name) for name in names})
            return logits, end_points

        def segment(images, output_size=None):
            size = tf.shape(images)[1:3] if output_size is None else output_size
            logits, end_points = run(images, size)
            return logits, {**end_points, **constants}

        return segment

    def _loss(self, images, sums, weights, end_points):
        """Returns what training minimizes, of whatever halting rule."""
        mean = tf.math.divide_no_nan(tf.reduce_sum(sums), tf.reduce_sum(weights))
        loss = tf.add_n([mean, *(tf.cast(x, tf.float32) for x in self.losses)])
        if self.network.baseline is None:
            return mean, loss
        blocks = [block for block in self.blocks if block.is_adaptive]
        names = [block.name for block in blocks]
        costs = [
            (block.current_tau(), end_points[f"{name}/ponder_cost"])
            for block, name in zip(blocks, names)
        ]
        term = latent_losses.reinforce_term(
            images,
            tf.math.divide_no_nan(sums, weights),
            costs,
            [end_points[f"{name}/log_prob"] for name in names],
            self.network.baseline,
        )
        return mean, loss + term

    def train_step(self, data):
        images, labels = data["image"], data["labels"]
        with tf.GradientTape() as tape:
            logits, end_points = self.with_end_points(
                images, training=True, output_size=tf.shape(labels)[1:3]
            )
            sums, weights = losses.cross_entropy(
                logits, labels, self._parts.class_weights
            )
            mean, loss = self._loss(images, sums, weights, end_points)
            # Gradients of replicas are summed.
            scaled = loss / tf.distribute.get_strategy().num_replicas_in_sync
        self.optimizer.minimize(scaled, self.trainable_variables, tape=tape)
        classes = tf.argmax(logits, -1, tf.int32)
        counted = tf.cast(labels != losses.VOID, tf.float32)
        spent = end_points.get("expected_flops", end_points["flops"])
        relative = tf.cast(spent, tf.float64) / tf.cast(
            end_points["dense_flops"], tf.float64
        )
        metrics = self._parts.metrics
        metrics["loss"].update_state(loss)
        metrics["cross_entropy"].update_state(mean)
        metrics["pixel_accuracy"].update_state(classes == labels, counted)
        metrics["relative_flops"].update_state(relative)
        metrics["mean_iou"].update_state(labels, classes)
        logs = {key: metric.result() for key, metric in metrics.items()}
        if self._parts.target is None:
            return logs
        return {**logs, **self._parts.target.observe(end_points, images)}
