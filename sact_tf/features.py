"""Networks as parts of other models: features of blocks, and what trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from sact_tf.layers import restored, saved
from sact_tf.networks.residual_network import ResidualNetwork


@keras.utils.register_keras_serializable("sact_tf")
class BlockFeatures(keras.layers.Layer):
    """Features after blocks of a network, by the blocks' names.

    The blocks' losses, tau times ponder cost and weight decay, are this layer's.

    Args:
        network: The network; or what `saved` returned of it.
        block_names: Blocks whose features are wanted. Those after the last are not run.
    """

    def __init__(
        self,
        network: ResidualNetwork | Mapping[str, Any],
        block_names: Sequence[str],
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.network = restored(network) if isinstance(network, Mapping) else network
        block_names, known = list(block_names), self.network.block_scopes
        if not block_names or any(block not in known for block in block_names):
            raise ValueError(
                f"block_names must be of {', '.join(known)}; got {block_names}"
            )
        self.block_names = block_names
        self._num_blocks = 1 + max(known.index(block) for block in block_names)

    def get_config(self):
        return {
            **super().get_config(),
            "network": saved(self.network),
            "block_names": self.block_names,
        }

    def build(self, input_shape):  # the network is built
        super().build(input_shape)

    @tf.autograph.experimental.do_not_convert
    def call(self, images, training=None):
        _, end_points = self.network.run_blocks(
            images, training, num_blocks=self._num_blocks
        )
        features = self.network.features(end_points, training)
        by_name = dict(zip(self.network.block_scopes, features))
        return {name: by_name[name] for name in self.block_names}


def feature_extractor(
    model: ResidualNetwork, block_names: Sequence[str], name: str | None = None
) -> keras.Model:
    """Returns a Functional model of a network's features, on the same weights.

    A feature is what the network itself goes on with after a block: its output,
    normalized and activated by the next block's first unit, and after the last block by
    the network's own last normalization.

    Args:
        model: From `imagenet_resnet` or `cifar_resnet`.
        block_names: Such as ["block2", "block3"] (ImageNet) or ["block_2"] (CIFAR).
        name: Keras name of the model.

    Returns:
        A `tf_keras.Model` from images [batch, height, width, 3], preprocessed, to a
        dictionary of features [batch, h, w, channels] by those names. Its losses are
        those of the blocks that run.

    Raises:
        ValueError: The network has no block of such a name.
    """
    images = keras.Input([None, None, 3], name="images")
    features = BlockFeatures(model, block_names)(images)
    return keras.Model(images, features, name=name)


def freeze_backbone(model: ResidualNetwork) -> None:
    """Lets only the halting heads train; compile the model after this.

    Batch normalizations of all else then use their moving statistics.

    Args:
        model: An adaptive network.

    Raises:
        ValueError: All units of the network run, so that it has no heads.
    """
    heads = [head for block in model.blocks for head in getattr(block, "heads", [])]
    if not heads:
        raise ValueError(
            "model must be an adaptive network, whose halting heads train; got "
            f"model_type={model.options.model_type!r}"
        )
    units = [unit for block in model.blocks for unit in block.units]
    others = [getattr(block, "transition", None) for block in model.blocks]
    others += [getattr(block, "transition_bn", None) for block in model.blocks]
    others += [model.stem_bn, model.final_bn, model.classifier]
    for layer in (model.stem, *units, *others):
        if layer is not None:
            layer.trainable = False
    for head in heads:
        head.trainable = True
