"""The ACT and SACT ResNet as a backbone of the TensorFlow Model Garden.

Importing this module registers the backbone `sact_resnet` with the factory of
`official.vision`, and one experiment per task:

| experiment | task | is like the Model Garden's |
|---|---|---|
| `sact_resnet_imagenet` | image classification | `resnet_imagenet` |
| `retinanet_sact_resnetfpn_coco` | object detection | `retinanet_resnetfpn_coco` |
| `seg_sact_resnetfpn_pascal` | semantic segmentation | `seg_resnetfpn_pascal` |

`with_sact_resnet` does the same for any other experiment of these tasks.

**Features.** Level l in "2" to "5" has stride 2^l: the first unit of blocks 2 to 4
halves the resolution, so the levels are the outputs of blocks 1 to 4. Those of a
pre-activation network are sums of residuals that nothing has normalized yet (and with
ACT and SACT weighted means of such sums). A feature is therefore what the network
itself goes on with: batch normalization and ReLU of the next block's first unit, and
after block 4 the network's last ones. That needs no weights of its own, so every
checkpoint of the network fits every task.

**Losses.** Each adaptive block adds tau times its mean ponder cost to `model.losses`
(N + R, SACT eq. 11), which every task of the Model Garden adds to its loss. Weight
decay is the Model Garden's `losses.l2_weight_decay`, once, instead of the network's
own.

**Images** come as the Model Garden's pipelines normalize them, by mean and standard
deviation of ImageNet, and are mapped to the [-1, 1] of the network and its checkpoints.
"""

# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import functools
import threading
import types
from collections.abc import Iterable

import tensorflow as tf
import tf_keras as keras

from sact_tf import optional

optional.load("official")  # says in one line that the Model Garden is missing

from official.core import config_definitions, exp_factory, task_factory
from official.modeling import hyperparams
from official.vision.configs import backbones as backbones_config
from official.vision.configs import image_classification as classification_config
from official.vision.configs import retinanet as retinanet_config
from official.vision.configs import semantic_segmentation as segmentation_config
from official.vision.modeling.backbones import factory
from official.vision.ops import preprocess_ops
from official.vision.tasks import image_classification, retinanet, semantic_segmentation

from sact_tf import halting
from sact_tf.layers import synchronize_batch_norm
from sact_tf.networks.imagenet_resnet import ImagenetResNet, imagenet_resnet
from sact_tf.pretrained import load_pretrained

LEVELS = (2, 3, 4, 5)
"""Levels of the features; level l has stride 2^l."""

EXPERIMENTS = {
    "sact_resnet_imagenet": "resnet_imagenet",
    "retinanet_sact_resnetfpn_coco": "retinanet_resnetfpn_coco",
    "seg_sact_resnetfpn_pascal": "seg_resnetfpn_pascal",
}
"""The experiments registered here, and which of the Model Garden's they are like."""


@dataclasses.dataclass
class SactResNet(hyperparams.Config):
    """Configuration of the backbone.

    Attributes:
        model: "50", "101", "152", "200", or the residual units of each block as in
            "3_4_23_3" (in quotes: YAML reads 3_4_23_3 as the number 34233).
        model_type: "vanilla", "act", "act_early_stopping" or "sact".
        base_channels: Bottleneck channels of the first block.
        tau: Weight of the ponder cost in the loss.
        execution: "masked", or in inference "perforated" or "tiled".
        precision: "float32", or "bfloat16" in perforated execution.
        tile_size: Side of the tiles that halt together, with "sact".
        stem_pool: Border of the stem's pooling, as of `imagenet_resnet`.
        downsample: Where blocks halve the resolution, as of `imagenet_resnet`.
        init_checkpoint: Weights to start from, as of `sact_tf.load_pretrained`. Halting
            variables start fresh where there are none; the classifier is passed over.
    """

    model: str = "50"
    model_type: str = "sact"
    base_channels: int = 64
    tau: float = 0.005
    execution: str = "masked"
    precision: str = "float32"
    tile_size: int = 1
    stem_pool: str = "same"
    downsample: str = "conv2"
    init_checkpoint: str = ""


@dataclasses.dataclass
class Backbone(backbones_config.Backbone):
    """The backbones of the Model Garden, and this one."""

    type: str | None = "sact_resnet"
    sact_resnet: SactResNet = dataclasses.field(default_factory=SactResNet)


@keras.utils.register_keras_serializable("sact_tf")
class SactResNetBackbone(keras.Model):
    """Features of an ImageNet residual network at four scales.

    Maps images [batch, height, width, 3], normalized as by the Model Garden, to a
    dictionary of features [batch, height / 2^l, width / 2^l, channels] by the levels
    "2" to "5". Its losses hold the weight decay and tau times the mean ponder cost of
    every block.

    Args:
        input_shape: Of the images, batch size included; sides may be None.
        name: Keras name of the model.
        **options: As of `imagenet_resnet`, but for `num_classes`.

    Raises:
        ValueError: On a bad option, naming it.
    """

    def __init__(
        self,
        input_shape: Iterable[int | None] = (None, None, None, 3),
        name: str = "sact_resnet",
        **options,
    ):
        super().__init__(name=name)
        network = imagenet_resnet(num_classes=1, **options)
        # In a namespace, where Keras does not count its classifier, which nothing uses.
        self._untracked = types.SimpleNamespace(
            network=network,
            input_shape=tuple(input_shape),
            of_replica=threading.local(),
        )
        self.stem = network.stem
        self.blocks = network.blocks
        self.final_bn = network.final_bn

    def get_config(self):
        config = self._untracked.network.get_config()
        del config["num_classes"]
        return {**config, "input_shape": self._untracked.input_shape, "name": self.name}

    @property
    def network(self) -> ImagenetResNet:
        """The network whose stem, blocks and last normalization these are."""
        return self._untracked.network

    @property
    def output_specs(self) -> dict[str, tf.TensorShape]:
        """Shapes of the features by level, as decoders ask for them."""
        batch, *sides, _ = self._untracked.input_shape
        specs = {}
        for level, spec in zip(LEVELS, self.network.block_specs):
            scaled = [
                None if side is None else -(-side // spec.stride) for side in sides
            ]
            specs[str(level)] = tf.TensorShape([batch, *scaled, spec.channels])
        return specs

    @property
    def end_points(self) -> dict[str, object]:
        """End points of the last call, as of `ImagenetResNet.run_blocks`.

        To be read in the `tf.function`, and under the replica, that made the call.
        """
        return self._untracked.of_replica.end_points

    @tf.autograph.experimental.do_not_convert
    def call(self, images, training=None):
        # (x * stddev + mean) lies in [0, 1].
        mean = tf.constant(preprocess_ops.MEAN_NORM, images.dtype)
        stddev = tf.constant(preprocess_ops.STDDEV_NORM, images.dtype)
        _, end_points = self.network.run_blocks(
            2.0 * (images * stddev + mean) - 1.0, training, return_end_points=True
        )
        self._untracked.of_replica.end_points = end_points
        features = self.network.features(end_points, training)
        return {str(level): x for level, x in zip(LEVELS, features)}


@factory.register_backbone_builder("sact_resnet")
def build_sact_resnet(
    input_specs: keras.layers.InputSpec,
    backbone_config: Backbone,
    norm_activation_config: hyperparams.Config,
    l2_regularizer: keras.regularizers.L2 | None = None,
) -> SactResNetBackbone:
    """Builds the backbone from its configuration, for the factory.

    Args:
        input_specs: Shape of the images.
        backbone_config: Whose `sact_resnet` is taken.
        norm_activation_config: Its `use_sync_bn` says whether replicas share their
            batch statistics; all else of normalization is the network's own.
        l2_regularizer: Weight decay of all convolutions; None: none.

    Raises:
        ValueError: On a bad option, naming it, or a checkpoint of another network.
        FileNotFoundError: There is no readable checkpoint.
    """
    options = backbone_config.get().as_dict()
    init_checkpoint = options.pop("init_checkpoint")
    # A Keras regularizer is c * sum(w^2), weight decay c * sum(w^2) / 2.
    weight_decay = 2.0 * float(l2_regularizer.l2) if l2_regularizer else 0.0
    backbone = SactResNetBackbone(
        input_specs.shape, weight_decay=weight_decay, **options
    )
    synchronize_batch_norm(backbone, norm_activation_config.use_sync_bn)
    if init_checkpoint:
        load_pretrained(
            backbone.network,
            init_checkpoint,
            fresh_halting=None,
            without_classifier=True,
        )
    return backbone


class _EndPointMean(keras.metrics.Mean):
    """Running mean of what the backbone reports, by the metric's name."""


def _per_image(value):
    """Averages over positions, where there are any."""
    value = tf.cast(value, tf.float32)
    return tf.reduce_mean(tf.reshape(value, [tf.shape(value)[0], -1]), axis=1)


def adaptivity(end_points: dict[str, object]) -> dict[str, tf.Tensor]:
    """Returns what tasks report of a backbone's end points.

    Returns:
        Values per image, float32 [batch]: `flops` of the backbone; of adaptive networks
        also `<block>/units`, the mean over positions, and `ponder_cost`, the sum over
        blocks of that mean.
    """
    values = {"flops": _per_image(end_points["flops"])}
    blocks = [b for b in end_points["block_scopes"] if f"{b}/num_units" in end_points]
    for block in blocks:
        values[f"{block}/units"] = _per_image(end_points[f"{block}/num_units"])
    if blocks:
        values["ponder_cost"] = tf.add_n(
            [_per_image(end_points[f"{block}/ponder_cost"]) for block in blocks]
        )
    return values


class _ReportsAdaptivity:
    """Lets a task of the Model Garden report units, ponder cost and operations."""

    def build_metrics(self, training: bool = True):
        metrics = super().build_metrics(training=training)
        config = self.task_config.model.backbone.get()
        if not isinstance(config, SactResNet):
            return metrics
        names = ["flops"]
        if halting.model_type(config.model_type).is_adaptive:
            names += ["ponder_cost", *(f"block{k}/units" for k in range(1, 5))]
        return metrics + [_EndPointMean(name, dtype=tf.float32) for name in names]

    def train_step(self, inputs, model, optimizer, metrics=None):
        logs = super().train_step(inputs, model, optimizer, _others(metrics))
        self._update(metrics, model)
        return logs

    def validation_step(self, inputs, model, metrics=None):
        logs = super().validation_step(inputs, model, _others(metrics))
        self._update(metrics, model)
        return logs

    def _update(self, metrics, model):
        ours = [m for m in metrics or [] if isinstance(m, _EndPointMean)]
        values = adaptivity(model.backbone.end_points) if ours else {}
        for metric in ours:
            metric.update_state(values[metric.name])


def _others(metrics):
    """The metrics that the Model Garden's own task knows how to update."""
    return [m for m in metrics or [] if not isinstance(m, _EndPointMean)]


@dataclasses.dataclass
class ImageClassification(classification_config.ImageClassificationTask):
    """The Model Garden's configuration, for the task below."""


@dataclasses.dataclass
class RetinaNet(retinanet_config.RetinaNetTask):
    """The Model Garden's configuration, for the task below."""


@dataclasses.dataclass
class SemanticSegmentation(segmentation_config.SemanticSegmentationTask):
    """The Model Garden's configuration, for the task below."""


@task_factory.register_task_cls(ImageClassification)
class ImageClassificationTask(
    _ReportsAdaptivity, image_classification.ImageClassificationTask
):
    """The Model Garden's image classification, with reports of adaptivity."""


@task_factory.register_task_cls(RetinaNet)
class RetinaNetTask(_ReportsAdaptivity, retinanet.RetinaNetTask):
    """The Model Garden's RetinaNet, with reports of adaptivity."""


@task_factory.register_task_cls(SemanticSegmentation)
class SemanticSegmentationTask(
    _ReportsAdaptivity, semantic_segmentation.SemanticSegmentationTask
):
    """The Model Garden's semantic segmentation, with reports of adaptivity."""


_TASKS = {task.__base__: task for task in (ImageClassification, RetinaNet)}
_TASKS[SemanticSegmentation.__base__] = SemanticSegmentation


def with_sact_resnet(
    experiment: config_definitions.ExperimentConfig,
) -> config_definitions.ExperimentConfig:
    """Gives an experiment of the Model Garden this backbone.

    Args:
        experiment: Of image classification, RetinaNet or semantic segmentation. Changed
            in place.

    Returns:
        The experiment; it starts from no checkpoint.

    Raises:
        ValueError: It is of another task.
    """
    task = experiment.task
    if type(task) not in _TASKS:
        accepted = ", ".join(known.__name__ for known in _TASKS)
        raise ValueError(
            f"the experiment's task must be one of {accepted}; got "
            f"{type(task).__name__}"
        )
    values = {
        field.name: getattr(task, field.name) for field in dataclasses.fields(task)
    }
    experiment.task = _TASKS[type(task)](**values)
    experiment.task.model.backbone = Backbone()
    experiment.task.init_checkpoint = None
    return experiment


def _experiment(like: str) -> config_definitions.ExperimentConfig:
    return with_sact_resnet(exp_factory.get_exp_config(like))


for _name, _like in EXPERIMENTS.items():
    exp_factory.register_config_factory(_name)(functools.partial(_experiment, _like))
