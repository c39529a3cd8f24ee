"""Trained networks that come with the package: `load`, `list_networks`, `card`."""

from sact_tf.zoo.cards import Card
from sact_tf.zoo.loading import card, list_networks, load, load_file

__all__ = ["Card", "card", "list_networks", "load", "load_file"]
