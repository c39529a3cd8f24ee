"""Words for those who mix this project's Keras, `tf_keras`, with Keras 3.

TensorFlow 2.16 and later give Keras 3 as `tf.keras`. Its optimizers, losses and
callbacks do not work in models of `tf_keras`, and fail with errors that do not say so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable


def refuse(parts: Iterable[object], what: str) -> None:
    """Raises TypeError if one of these is of Keras 3.

    Args:
        parts: Optimizers, losses, metrics or callbacks.
        what: What they are, in words.
    """
    for part in parts:
        if type(part).__module__.partition(".")[0] == "keras":
            name = type(part).__name__
            raise TypeError(
                f"{what}: {name} is of Keras 3 (tf.keras), and this is a model of "
                "tf_keras; import tf_keras and take it from there"
            )


def explain_loading(name: str) -> None:
    """Has Keras 3 say what to do when it meets a network of ours in a file.

    Args:
        name: Of the class.
    """
    loaded = sys.modules.get("keras")  # TensorFlow imports it
    if loaded is None or not hasattr(loaded, "saving"):
        return

    def from_config(cls, config, custom_objects=None):
        raise TypeError(
            f"{name} is a network of tf_keras, which Keras 3 (tf.keras) cannot load; "
            "use tf_keras.models.load_model"
        )

    stand_in = type(name, (), {"from_config": classmethod(from_config)})
    stand_in.get_config = lambda self: {}
    loaded.saving.register_keras_serializable("sact_tf")(stand_in)
