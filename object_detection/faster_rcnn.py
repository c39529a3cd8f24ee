"""Faster R-CNN around any ImageNet network of `sact_tf` (SACT, 4.2 and A.2)."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping

import tensorflow as tf
import tf_keras as keras

from object_detection import anchors, losses
from object_detection.box_classifier import BOX_WEIGHTS, BoxClassifier, crop_regions
from object_detection.feature_extractor import (
    NUM_BLOCKS,
    FeatureExtractor,
    make_network,
    whole_sizes,
)
from object_detection.options import Options
from object_detection.proposals import RegionProposalNetwork, propose
from sact_tf import latent_losses
from sact_tf.layers import build_child
from sact_tf.networks.residual_network import ResidualNetwork
from sact_tf.optional import lazy

detection_generator = lazy("official.vision.modeling.layers.detection_generator")
roi_sampler = lazy("official.vision.modeling.layers.roi_sampler")

_STAGES = NUM_BLOCKS + 1
_WEIGHT_DECAY = 1e-4  # the network's own
_LOSSES = ("rpn_score", "rpn_box", "box_class", "box_refinement")


class FasterRCNN(keras.Model):
    """Detector on the features of blocks 1 to 3, with block 4 as box classifier.

    Its weights in those blocks are the network's, under the network's names, so that
    checkpoints of classification networks load (`object_detection.training`).

    An adaptive network stays adaptive in block 4, so that it computes what its
    checkpoint was trained to. `tau` weighs the ponder cost of blocks 1 to 3 only.

    Args:
        num_classes: Classes of objects; background is class 0 beside them.
        model: Units per block, as in `sact_tf.imagenet_resnet`; not used by iterative
            networks.
        model_type: "vanilla", "act", "act_early_stopping" or "sact"; or "iterative" or
            "iamnn", of which every region decides on the iterations of stage 4.
        base_channels: Scales the channels of all blocks.
        tau: Weight of the feature extractor's ponder cost in the losses.
        execution: "masked"; or, for inference and for training with stored moments,
            "perforated", or "tiled" with a `tile_size` above 1.
        options: What it is beside its network.
        **network_options: As of `sact_tf.imagenet_resnet`, such as `tile_size` and
            `precision`, which is that of the units of all four blocks; or of
            `sact_tf.iterative_net`, such as `max_iterations`.

    Attributes:
        feature_extractor: `FeatureExtractor`.
        rpn: `RegionProposalNetwork`.
        box_classifier: `BoxClassifier`.
        slim_scope: Root of the variables' names in checkpoints.
        card: Of a detector that `sact_tf.load` loaded, its `sact_tf.zoo.Card`.

    Raises:
        ValueError: On a bad argument, naming it.
    """

    slim_scope = ""
    card = None

    def __init__(
        self,
        num_classes: int,
        model: str = "101",
        model_type: str = "vanilla",
        base_channels: int = 64,
        tau: float = 0.005,
        execution: str = "masked",
        options: Options | Mapping | None = None,
        name: str | None = None,
        **network_options,
    ):
        super().__init__(name=name)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1; got {num_classes}")
        options = Options(**options) if isinstance(options, Mapping) else options
        options = options or Options()
        self._config = dict(
            num_classes=num_classes,
            model=model,
            model_type=model_type,
            base_channels=base_channels,
            tau=tau,
            execution=execution,
            options=dataclasses.asdict(options),
            **network_options,
        )
        # In a namespace, where Keras does not count its classifier as the detector's.
        network = make_network(
            options.block4_stride,
            tau,
            model,
            model_type,
            base_channels=base_channels,
            execution=execution,
            **network_options,
        )
        num_blocks = NUM_BLOCKS * (len(network.blocks) // _STAGES)
        self.feature_extractor = FeatureExtractor(network, num_blocks)
        channels, side = self.feature_extractor.spec.channels, options.pool_size
        self.rpn = RegionProposalNetwork(
            options.rpn_channels or channels // 2,
            len(options.anchor_sizes) * len(options.aspect_ratios),
            _WEIGHT_DECAY,
        )
        self.box_classifier = BoxClassifier(
            network.blocks[num_blocks:],
            network.final_bn,
            network.block_specs[-1].channels,
            num_classes,
            _WEIGHT_DECAY,
        )
        self._parts = types.SimpleNamespace(
            options=options,
            network=network,
            sample_regions=roi_sampler.ROISampler(
                num_sampled_rois=options.num_region_samples,
                foreground_fraction=options.foreground_fraction,
            ),
            metrics={
                key: keras.metrics.Mean(name=key)
                for key in ("loss", *_LOSSES, "relative_flops")
            },
        )
        with tf.name_scope(self.name):
            build_child(self.rpn, [None, None, None, channels])
            build_child(self.box_classifier, [None, side, side, channels])
        self.built = True

    def get_config(self):
        return {**self._config, "name": self.name}

    @property
    def options(self) -> Options:
        """What the detector is beside its network."""
        return self._parts.options

    @property
    def execution(self) -> str:
        """How blocks run in inference."""
        return self._config["execution"]

    @property
    def blocks(self) -> list[keras.layers.Layer]:
        """The network's blocks."""
        return [*self.feature_extractor.blocks, *self.box_classifier.blocks]

    @property
    def network(self) -> ResidualNetwork:
        """The network whose blocks these are; its classifier of images is not used."""
        return self._parts.network

    @property
    def slim_scopes(self) -> dict[str, keras.layers.Layer]:
        """All layers by their scopes in checkpoints."""
        network = {
            f"{self.network.slim_scope}/{scope}": layer
            for scope, layer in self.network.slim_scopes.items()
            if scope != "logits"
        }
        return {**network, "rpn": self.rpn, "box_classifier": self.box_classifier}

    @property
    def classifier_scopes(self) -> tuple[str, ...]:
        """Beginnings of the names of variables that depend on the classes."""
        return ("box_classifier/class/", "box_classifier/box/")

    @property
    def metrics(self):
        return list(self._parts.metrics.values())

    def with_execution(
        self, execution: str | None, precision: str | None = None
    ) -> FasterRCNN:
        """As `sact_tf.Network.with_execution`."""
        changes = {"execution": execution, "precision": precision}
        return self.with_options(
            **{name: value for name, value in changes.items() if value is not None}
        )

    def with_options(self, **changes) -> FasterRCNN:
        """As of `Network`, of what its network is made with."""
        made = self.network.options
        current = {n: self._config.get(n, getattr(made, n, None)) for n in changes}
        if current == changes:
            return self
        copy = type(self)(**{**self._config, **changes}, name=self.name)
        copy.set_weights(self.get_weights())
        copy.card = self.card
        return copy

    def extract(
        self,
        images: tf.Tensor,
        sizes: tf.Tensor,
        training: bool = False,
        trains_rule: bool | None = None,
        seed: tf.Tensor | None = None,
    ):
        """Runs blocks 1 to 3; see `FeatureExtractor`."""
        return self.feature_extractor(
            images, sizes, training=training, trains_rule=trains_rule, seed=seed
        )

    def propose(
        self, features: tf.Tensor, valid: tf.Tensor, sizes: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Makes proposals from features.

        Args:
            features: [batch, height, width, channels].
            valid: Bool [batch, height, width], where they lie inside of the images.
            sizes: int32 [batch, 2], of the images.

        Returns:
            `logits` [batch, n] and `encoded` [batch, n, 4] of all anchors, `anchors`
            [n, 4], `allowed` (bool [batch, n]: anchors inside of the image), and
            `boxes` [batch, proposals, 4] in pixels, -1 where there is none.
        """
        options = self.options
        logits, encoded = self.rpn(features)
        height, width = tf.unstack(tf.shape(features)[1:3])
        grid = anchors.anchor_grid(
            height,
            width,
            self.feature_extractor.stride,
            options.anchor_sizes,
            options.aspect_ratios,
        )
        per_position = len(options.anchor_sizes) * len(options.aspect_ratios)
        allowed = tf.repeat(
            tf.reshape(valid, [tf.shape(valid)[0], -1]), per_position, axis=1
        )
        boxes, _ = propose(
            logits,
            encoded,
            grid,
            allowed,
            sizes,
            options.num_proposals,
            options.proposal_nms_iou,
        )
        return dict(
            logits=logits, encoded=encoded, anchors=grid, allowed=allowed, boxes=boxes
        )

    def classify(
        self,
        features: tf.Tensor,
        valid: tf.Tensor,
        boxes: tf.Tensor,
        training: bool = False,
        trains_rule: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Classifies regions.

        Args:
            features: [batch, height, width, channels].
            valid: Bool [batch, height, width], where they lie inside of the images.
            boxes: [batch, n, 4] in pixels.
            training: As in the block.
            trains_rule: As in `BoxClassifier`.
            seed: As there.

        Returns:
            Logits [batch, n, classes + 1] and encoded boxes [batch, n, 4 * (classes +
            1)]; and what blocks tell of regions, [batch, n] each.
        """
        options = self.options
        feature_sizes = tf.stack(
            [
                tf.reduce_sum(tf.cast(tf.reduce_any(valid, axis), tf.int32), 1)
                for axis in (2, 1)
            ],
            1,
        )
        regions = crop_regions(
            features,
            boxes,
            feature_sizes,
            self.feature_extractor.stride,
            options.crop_size,
            options.pool_size,
        )
        logits, encoded, told = self.box_classifier(
            regions, training=training, trains_rule=trains_rule, seed=seed
        )
        count = boxes.shape[1]
        logits, encoded = (
            tf.reshape(r, [-1, count, r.shape[-1]]) for r in (logits, encoded)
        )
        told = {key: tf.reshape(value, [-1, count]) for key, value in told.items()}
        return logits, encoded, told

    @tf.autograph.experimental.do_not_convert
    def call(
        self,
        images,
        sizes=None,
        training=False,
        score_threshold=None,
        max_detections=None,
        seed=None,
    ):
        """Detects objects.

        Args:
            images: [batch, height, width, 3] in [-1, 1], each at the top left.
            sizes: int32 [batch, 2], their sizes without padding; None: there is none.
            training: Not used: `fit` does what training takes.
            score_threshold: In place of that of the options; may be a tensor.
            max_detections: The same.
            seed: int32 [2], of networks that halt at random; None: one is drawn.

        Returns:
            Dictionary of `detection_boxes` (float32 [batch, max_detections, 4]: ymin,
            xmin, ymax, xmax in pixels), `detection_scores` [batch, max_detections],
            `detection_classes` (int32, from 1), `num_detections` (int32 [batch]), and
            `end_points` of the feature extractor. These also hold, where regions halt
            as a whole, `box_classifier/num_units`, int32 [batch, proposals], 0 where
            there is no proposal; and of iterative networks `box_classifier/macs`, int64
            [batch], the multiply-accumulates of stage 4 in all of them.
        """
        if sizes is None:
            sizes = whole_sizes(images)
        features, end_points = self.extract(images, sizes, seed=seed)
        boxes = self.propose(features, end_points["valid"], sizes)["boxes"]
        if seed is not None:
            seed = tf.random.experimental.stateless_fold_in(seed, NUM_BLOCKS)
        logits, encoded, told = self.classify(
            features, end_points["valid"], boxes, seed=seed
        )
        # Where there is no proposal, there is no object.
        is_there = tf.reduce_max(boxes, -1) >= 0
        for key in ("num_units", "macs"):
            if key in told:
                value = tf.where(is_there, told[key], 0)
                value = tf.reduce_sum(value, 1) if key == "macs" else value
                end_points[f"box_classifier/{key}"] = value
        nothing = tf.one_hot(0, logits.shape[-1], on_value=0.0, off_value=-1e9)
        logits = tf.where(is_there[..., tf.newaxis], logits, nothing)
        select = self._selection(score_threshold, max_detections)
        detections = select(
            encoded, logits, boxes, tf.cast(sizes, tf.float32), BOX_WEIGHTS
        )
        return {**detections, "end_points": end_points}

    def _selection(self, score_threshold, max_detections):
        """Returns what selects detections, with the options' limits or others."""
        options = self.options
        if score_threshold is None:
            score_threshold = options.score_threshold
        if max_detections is None:
            max_detections = options.max_detections
        return detection_generator.DetectionGenerator(
            pre_nms_score_threshold=score_threshold,
            nms_iou_threshold=options.nms_iou,
            max_num_detections=max_detections,
            nms_version="batched",
        )

    def export_saved_model(self, path: str, **options) -> str:
        """Exports for serving; see `object_detection.exporting.export_saved_model`."""
        from object_detection import exporting  # which imports this module

        return exporting.export_saved_model(self, path, **options)

    def compiled(self) -> Callable[..., dict[str, object]]:
        """Returns a function that does what a call does, compiled by TensorFlow."""
        names = ("block_scopes", "block_num_units")  # of Python values
        constants = {}

        @tf.function(reduce_retracing=True)
        def run(images, sizes, seed):
            detections = self(images, sizes, seed=seed)
            end_points = detections["end_points"]
            constants.update({name: end_points.pop(name) for name in names})
            return detections

        def detect(images, sizes=None, seed=None):
            detections = run(images, sizes, seed)
            detections["end_points"].update(constants)
            return detections

        return detect

    def detection_losses(
        self,
        batch: Mapping[str, tf.Tensor],
        training: bool = False,
        trains_rule: bool = False,
    ) -> tuple[dict[str, tf.Tensor], dict[str, object]]:
        """Computes the losses of a batch with objects.

        Args:
            batch: `image` [batch, height, width, 3], `size` (int32 [batch, 2]), `boxes`
                (float32 [batch, m, 4] in pixels) and `classes` (int32 [batch, m]), both
                -1 in rows that are no object. m must be known.
            training: Whether batch normalization trains.
            trains_rule: Whether the halting rule does.

        Returns:
            Scalars by the names in `losses`, and the feature extractor's end points; of
            block 4 `box_classifier/log_prob` [batch, regions] where its rule is trained
            and tells it.
        """
        sizes, boxes = batch["size"], batch["boxes"]
        features, end_points = self.extract(
            batch["image"], sizes, training, trains_rule or None
        )
        valid = end_points["valid"]
        proposals = self.propose(features, valid, sizes)
        samples = anchors.sample_anchors(
            proposals["anchors"],
            proposals["allowed"],
            boxes,
            self.options.num_anchor_samples,
        )
        result = losses.proposal_losses(
            proposals["logits"], proposals["encoded"], *samples
        )
        regions, matched, classes = self._sample_regions(
            proposals["boxes"], boxes, batch["classes"]
        )
        logits, encoded, told = self.classify(
            features, valid, regions, training, trains_rule
        )
        if "log_prob" in told:
            end_points["box_classifier/log_prob"] = told["log_prob"]
        result.update(losses.box_losses(logits, encoded, regions, classes, matched))
        return result, end_points

    def _sample_regions(self, proposals, boxes, classes):
        """Draws regions image by image: the sampler takes no unknown batch size."""

        def sample(image):
            drawn = self._parts.sample_regions(*(x[tf.newaxis] for x in image))
            return tuple(tf.stop_gradient(x[0]) for x in drawn[:3])

        types = (tf.float32, tf.float32, tf.int32)
        return tf.map_fn(sample, (proposals, boxes, classes), fn_output_signature=types)

    def training_state(self) -> dict[str, tf.Variable]:
        """As of `Network`."""
        return self.network.training_state()

    def _reinforce_term(self, loss, end_points):
        """Returns REINFORCE's term of the loss, 0 for other halting rules.

        The losses of a detector are those of the batch as a whole, and so the batch is
        one sample of all its latent variables.
        """
        if self.network.baseline is None:
            return 0.0
        names = [block.name for block in self.feature_extractor.blocks]
        log_probs = [end_points[f"{name}/log_prob"] for name in names]
        log_probs.append(end_points["box_classifier/log_prob"])
        return latent_losses.reinforce_term(
            end_points["inputs"][:1],
            loss[tf.newaxis],
            [],  # the loss holds the ponder cost
            [tf.reduce_sum(log_prob)[tf.newaxis] for log_prob in log_probs],
            self.network.baseline,
        )

    def train_step(self, data):
        training = self.options.train_batch_norm
        with tf.GradientTape() as tape:
            terms, end_points = self.detection_losses(data, training, trains_rule=True)
            loss = tf.add_n([*terms.values(), *self.losses])
            loss += self._reinforce_term(loss, end_points)
            # Gradients of replicas are summed.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = loss / replicas
        self.optimizer.minimize(scaled, self.trainable_variables, tape=tape)
        spent = end_points.get("expected_flops", end_points["flops"])
        dense = tf.cast(end_points["dense_flops"], tf.float32)
        relative = tf.reduce_mean(tf.cast(spent, tf.float32) / dense)
        for key, value in {"loss": loss, **terms, "relative_flops": relative}.items():
            self._parts.metrics[key].update_state(value)
        return {key: metric.result() for key, metric in self._parts.metrics.items()}
