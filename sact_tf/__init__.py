"""Spatially Adaptive Computation Time (Figurnov et al., CVPR 2017)."""

# ruff: noqa: E402

from sact_tf import siblings

siblings.check("custom_ops")

from sact_tf import perforation  # noqa: F401 (a room; its layers are known to Keras)
from sact_tf.act_blocks import ACTBlock, SACTBlock
from sact_tf.blocks import AdaptiveBlock
from sact_tf.checkpoints import (
    CheckpointMismatchError,
    checkpoint_step,
    load_slim_checkpoint,
    newest_checkpoint,
    save_slim_checkpoint,
    slim_variables,
    squeeze_checkpoint,
)
from sact_tf.features import feature_extractor, freeze_backbone
from sact_tf.networks.cifar_bottleneck import (
    CifarBottleneckResNet,
    cifar_bottleneck_resnet,
)
from sact_tf.networks.cifar_resnet import CifarResNet, cifar_resnet
from sact_tf.networks.imagenet_resnet import ImagenetResNet, imagenet_resnet
from sact_tf.networks.iterative_net import IterativeNet, iterative_net
from sact_tf.networks.network import AdaptivityMetrics, Network
from sact_tf.networks.options import NetworkOptions
from sact_tf.plain_block import PlainBlock
from sact_tf.ponder_maps import Ponder, ponder
from sact_tf.preprocessing import decode_predictions, preprocess_input
from sact_tf.pretrained import Pretrained, load_pretrained
from sact_tf.target_flops import TargetFlops
from sact_tf.units import Unit
from sact_tf.zoo import list_networks, load

__version__ = "0.1.0"

__all__ = [
    "ACTBlock",
    "AdaptiveBlock",
    "AdaptivityMetrics",
    "CheckpointMismatchError",
    "CifarBottleneckResNet",
    "CifarResNet",
    "ImagenetResNet",
    "IterativeNet",
    "Network",
    "NetworkOptions",
    "PlainBlock",
    "Ponder",
    "Pretrained",
    "SACTBlock",
    "TargetFlops",
    "Unit",
    "checkpoint_step",
    "cifar_bottleneck_resnet",
    "cifar_resnet",
    "decode_predictions",
    "feature_extractor",
    "freeze_backbone",
    "imagenet_resnet",
    "iterative_net",
    "list_networks",
    "load",
    "load_pretrained",
    "load_slim_checkpoint",
    "newest_checkpoint",
    "ponder",
    "preprocess_input",
    "save_slim_checkpoint",
    "slim_variables",
    "squeeze_checkpoint",
]
