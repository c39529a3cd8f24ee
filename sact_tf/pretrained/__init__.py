"""Networks that start from weights of elsewhere, such as Keras Applications."""

from sact_tf.pretrained.formats import identify
from sact_tf.pretrained.loading import (
    Pretrained,
    load_first_weights,
    load_found,
    load_pretrained,
    read_keras_applications,
)
from sact_tf.pretrained.sources import SOURCES, Found, Source

__all__ = [
    "SOURCES",
    "Found",
    "Pretrained",
    "Source",
    "identify",
    "load_first_weights",
    "load_found",
    "load_pretrained",
    "read_keras_applications",
]
