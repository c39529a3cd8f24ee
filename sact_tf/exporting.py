"""SavedModels for serving, TensorFlow Lite and ONNX files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras as keras

import custom_ops
from sact_tf import visualization
from sact_tf.data.imagenet import decode_image
from sact_tf.end_points import ADAPTIVE_METRICS
from sact_tf.networks.iterative_block import VARIANTS
from sact_tf.optional import lazy
from sact_tf.writing import atomic_directory, write_bytes

tf2onnx = lazy("tf2onnx")

_TOP = 5
_OPSET = 17
_BLACK = tf.zeros([1, 1, 3], tf.uint8)


def adaptivity(
    end_points: Mapping[str, object], sizes: tf.Tensor | None = None
) -> dict[str, tf.Tensor]:
    """Returns the outputs of an exported model that tell where computation went.

    Args:
        end_points: Of a network.
        sizes: int32 [batch, 2], of images of several sizes; None: none is padded.

    Returns:
        `flops`, of iterative networks `macs`, of adaptive networks
        `<block>_ponder_cost` and `<block>_num_units`, and of SACT networks
        `ponder_cost_map`; see `export_saved_model`.
    """
    outputs = {key: end_points[key] for key in ("flops", "macs") if key in end_points}
    for block in end_points["block_scopes"]:
        for key in ADAPTIVE_METRICS:
            if f"{block}/{key}" in end_points:
                outputs[f"{block}_{key}"] = end_points[f"{block}/{key}"]
    if visualization.has_maps(end_points):
        outputs["ponder_cost_map"] = visualization.sact_map(end_points, sizes=sizes)
    return outputs


def map_images(
    image_bytes: tf.Tensor, prepare: Callable[[tf.Tensor], Any], signature: Any
) -> Any:
    """Decodes encoded images, one by one; an error tells the number of the image.

    Args:
        image_bytes: Strings [batch], JPEG or PNG files.
        prepare: Maps an image, uint8 [height, width, 3], to what is wanted of it.
        signature: Of what that is, as `tf.map_fn` takes it.

    Returns:
        The same of all images.
    """

    def decode(numbered):
        k, encoded = numbered
        name = tf.strings.join(["image ", tf.strings.as_string(k)])
        return prepare(decode_image(encoded, name))

    numbered = (tf.range(tf.size(image_bytes)), image_bytes)
    return tf.map_fn(decode, numbered, fn_output_signature=signature)


def write_saved_model(
    model: keras.Model,
    path: str,
    serve: tf.types.experimental.PolymorphicFunction,
    serve_bytes: tf.types.experimental.PolymorphicFunction | None,
    implementation: str = "tensorflow",
) -> str:
    """Writes a SavedModel with the signatures that those of this project have.

    Args:
        model: Whose variables are saved.
        path: Directory to write, whole or not at all.
        serve: Becomes `serving_default`; not traced yet.
        serve_bytes: Becomes `serving_bytes`; not traced yet. None: how encoded images
            become the model's is not known.
        implementation: As of `export_saved_model`.

    Returns:
        `path`.
    """
    module = tf.Module()
    module.variables_ = model.variables
    module.serve = serve
    signatures = {"serving_default": serve}
    if serve_bytes is not None:
        module.serve_bytes = signatures["serving_bytes"] = serve_bytes
    with custom_ops.default_implementation(implementation):
        with atomic_directory(path) as temporary:
            tf.saved_model.save(module, temporary, signatures=signatures)
    return path


def of_logits(logits: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the outputs that only networks with a classifier have."""
    return {"logits": logits, **of_probabilities(tf.nn.softmax(logits))}


def of_probabilities(probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the outputs of a classifier that gives no logits."""
    top = tf.math.top_k(probabilities, min(_TOP, probabilities.shape[-1]))
    return {
        "probabilities": probabilities,
        "top_classes": top.indices,
        "top_probabilities": top.values,
    }


def _serving_function(model: keras.Model):
    """Returns the function from images to the outputs that all exports have."""

    def serve(images):
        logits, end_points = model.with_end_points(images, training=False)
        outputs = (
            of_logits(logits) if model.options.num_classes else {"features": logits}
        )
        return {**outputs, **adaptivity(end_points)}

    return serve


def export_saved_model(
    model: keras.Model,
    path: str,
    execution: str | None = None,
    implementation: str = "tensorflow",
    image_size: int | None = None,
    precision: str | None = None,
) -> str:
    """Exports a network for serving, at any batch and image size.

    The signature `serving_default` takes `images`, float32 [batch, height, width, 3],
    preprocessed as in evaluation; `serving_bytes` takes `image_bytes`, strings [batch]
    of JPEG or PNG files, and does that itself. Both return

    * `logits` and `probabilities`, float32 [batch, classes],
    * `top_classes` int32 and `top_probabilities` float32 [batch, 5], the likeliest
      (networks without a classifier: `features` instead of all these),
    * `flops` int64 [batch], and of iterative networks `macs`,
    * of adaptive networks `<block>_ponder_cost` float32 and `<block>_num_units` int32,
      [batch], of SACT networks [batch, block height, block width],
    * of SACT networks `ponder_cost_map` float32 [batch, height, width, 1].

    Args:
        model: Residual network of this package.
        path: Directory to write.
        execution: As of a network; None: the model's own.
        implementation: Of perforated execution: "tensorflow" loads anywhere; "native"
            is faster, and loads after `custom_ops.load()`.
        image_size: Side of the images of `serving_bytes`; None: what the original
            evaluates, 224 (ImageNet) or 32 (CIFAR).
        precision: As of a network; None: the model's own. Weights stay float32, and so
            does the file: kernels round them where they run, and multiply what comes of
            it on any processor, which may know bfloat16 or not.

    Returns:
        `path`.

    Raises:
        ValueError: On an `execution`, `implementation` or `precision` that the network
            cannot have.
    """
    path = os.fspath(path)
    model = model.with_execution(execution, precision)

    serve = _serving_function(model)

    def preprocess(image):
        return model.preprocess(image, image_size)

    def serve_bytes(image_bytes):
        return serve(map_images(image_bytes, preprocess, tf.float32))

    images = tf.TensorSpec([None, None, None, 3], name="images")
    image_bytes = tf.TensorSpec([None], tf.string, "image_bytes")
    # Nothing here is for AutoGraph, which could not convert a model anyway.
    return write_saved_model(
        model,
        path,
        tf.function(serve, [images], autograph=False),
        tf.function(serve_bytes, [image_bytes], autograph=False),
        implementation,
    )


def export_tflite(
    model: keras.Model,
    path: str,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 1,
) -> str:
    """Exports a network for TensorFlow Lite, at one batch and image size.

    Its signature takes `images` and returns what `serving_default` of
    `export_saved_model` does, by TensorFlow Lite's own operations alone. Runs masked:
    TensorFlow Lite crashes on what perforated execution becomes where no position is
    active. With `act_early_stopping`, units are skipped once all images have halted.

    Args:
        model: Residual network of this package.
        path: File to write.
        image_size: Height and width of the images; None: what the original evaluates.
        batch_size: Images at a time.

    Returns:
        `path`.
    """
    model = model.with_execution("masked")
    height, width = image_size or model.preprocess(_BLACK).shape[:2]
    images = tf.TensorSpec([batch_size, height, width, 3], name="images")
    serve = tf.function(_serving_function(model), [images], autograph=False)
    function = serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    write_bytes(path, converter.convert())
    return os.fspath(path)


def export_onnx(model: keras.Model, path: str, execution: str | None = None) -> str:
    """Exports a network to ONNX (opset 17), at any batch and image size.

    Takes `images` and returns what `serving_default` of `export_saved_model` does.
    Networks of type `act_early_stopping` are exported as `act`, whose results are the
    same: the converter knows no branches that return several tensors. For the same
    reason iterative networks run masked.

    Args:
        model: Residual network of this package.
        path: File to write.
        execution: As of a network; None: the model's own. Perforated execution is that
            in TensorFlow operations, whatever their precision is in float32.

    Returns:
        `path`.

    Raises:
        MissingPackageError: The package tf2onnx is not installed.
    """
    model = model if execution is None else model.with_execution(execution)
    if model.options.model_type == "act_early_stopping":
        model = model.with_options(model_type="act")
    if model.options.model_type in VARIANTS:
        model = model.with_execution("masked")
    elif model.options.precision != "float32":
        model = model.with_options(precision="float32")
    images = tf.TensorSpec([None, None, None, 3], name="images")
    with custom_ops.default_implementation("tensorflow"):
        serve = tf.function(_serving_function(model), autograph=False)
        proto, _ = tf2onnx.convert.from_function(serve, [images], opset=_OPSET)
    write_bytes(path, proto.SerializeToString())
    return os.fspath(path)
