"""Blocks 1 to 3 of a residual network as features of a detector (SACT, section 4.2)."""

from __future__ import annotations

import types

import tensorflow as tf
import tf_keras as keras

from sact_tf.checkpoints import load_slim_checkpoint
from sact_tf.networks.imagenet_resnet import imagenet_resnet
from sact_tf.networks.iterative_block import VARIANTS
from sact_tf.networks.iterative_net import iterative_net
from sact_tf.networks.network import BlockSpec, Network
from sact_tf.networks.residual_network import ResidualNetwork

NUM_BLOCKS = 3
"""Blocks of a network that make a detector's features; block 4 classifies regions."""


def make_network(
    block4_stride: int, tau: float, model: str, model_type: str, **options
) -> ResidualNetwork:
    """Makes the network of a detector, whose classifier of images is not used.

    Args:
        block4_stride: Stride of the last stage.
        tau: Weight of the ponder cost of the others.
        model: Units per block; not used by iterative networks.
        model_type: Of `imagenet_resnet`, or a variant of `iterative_net`.
        **options: Others of that function.
    """
    taus, strides = [tau] * NUM_BLOCKS + [0.0], [1, 2, 2, block4_stride]
    if model_type not in VARIANTS:
        given = dict(tau=tuple(taus), block_strides=tuple(strides))
        return imagenet_resnet(model, model_type, num_classes=1, **given, **options)
    if options.get("double"):
        taus = [value for value in taus for _ in range(2)]
        strides = [part for stride in strides for part in (stride, 1)]
    given = dict(tau=taus, block_strides=strides)
    return iterative_net(model_type, num_classes=1, **given, **options)


def load_features(network: Network, checkpoint_path: str) -> FeatureExtractor:
    """Loads a detector's checkpoint for its features alone.

    Args:
        network: An ImageNet network of the detector's depth and model type.
        checkpoint_path: A checkpoint prefix, or a directory, whose latest checkpoint is
            taken.

    Raises:
        FileNotFoundError: There is no readable checkpoint.
        CheckpointMismatchError: It is another network's.
    """
    load_slim_checkpoint(network, checkpoint_path, without_classifier=True)
    return FeatureExtractor(network)


def whole_sizes(images: tf.Tensor) -> tf.Tensor:
    """Returns the sizes, int32 [batch, 2], of images without padding."""
    shape = tf.shape(images)
    return tf.broadcast_to(shape[1:3], [shape[0], 2])


class FeatureExtractor(keras.layers.Layer):
    """The first blocks of a network, on images of several sizes.

    An image gets the same features in a padded batch as alone. This takes masked
    execution; the others need images without padding, such as one at a time.

    Args:
        network: Any network of `sact_tf`.
        num_blocks: How many of its blocks.
    """

    def __init__(
        self,
        network: Network,
        num_blocks: int = NUM_BLOCKS,
        name: str = "feature_extractor",
    ):
        super().__init__(name=name)
        self.stem, self.stem_bn = network.stem, network.stem_bn
        self.blocks = network.blocks[:num_blocks]
        # In a namespace, where Keras does not count its other layers as this one's.
        self._made_of = types.SimpleNamespace(network=network)
        self.built = True

    @property
    def spec(self) -> BlockSpec:
        """Channels and stride of the features."""
        return self._made_of.network.block_specs[len(self.blocks) - 1]

    @property
    def stride(self) -> int:
        """Pixels of the image from one position of the features to the next."""
        return self.spec.stride

    def with_end_points(
        self, images: tf.Tensor, training: bool | None = None
    ) -> tuple[tf.Tensor, dict[str, object]]:
        """Extracts features of images without padding; see `call`."""
        return self(images, whole_sizes(images), training=training)

    @tf.autograph.experimental.do_not_convert
    def call(self, images, sizes, training=None, trains_rule=None, seed=None):
        """Extracts features.

        Args:
            images: [batch, height, width, 3] in [-1, 1]; each image is at the top left.
            sizes: int32 [batch, 2], heights and widths without padding.
            training: As in the blocks.
            trains_rule: As in `Network.run_blocks`.
            seed: As there.

        Returns:
            Features [batch, h, w, channels], zero outside of images; and end points as
            of `Network.run_blocks`, but for the outputs of blocks.

        Raises:
            tf.errors.InvalidArgumentError: Images are padded that must not be.
        """
        x, end_points = self._made_of.network.run_blocks(
            images,
            training,
            True,
            sizes,
            len(self.blocks),
            trains_rule=trains_rule,
            seed=seed,
        )
        for name in end_points["block_scopes"]:
            del end_points[name]  # large, and not for everybody's outputs
        return x, end_points
