"""The Model Garden's models and tasks on the ACT and SACT ResNet."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from official.core import exp_factory, task_factory
from official.vision.ops import preprocess_ops
from official.vision.serving import export_saved_model_lib

import sact_tf
from sact_tf import model_garden

SIZE = 64
TAU = 0.5
CLASSES = 3


def make_task(experiment, weight_decay=0.0, **network):
    """Tiny task of an experiment; images have sides of SIZE."""
    parameters = exp_factory.get_exp_config(experiment)
    network = {"model": "1_1_2_1", "base_channels": 2, "tau": TAU, **network}
    parameters.override(
        {
            "task": {
                "model": {
                    "num_classes": CLASSES,
                    "input_size": [SIZE, SIZE, 3],
                    "backbone": {"sact_resnet": network},
                },
                "losses": {"l2_weight_decay": weight_decay},
            }
        }
    )
    model = parameters.task.model
    if "imagenet" not in experiment:
        small = {"head": {"num_filters": 4}, "decoder": {"fpn": {"num_filters": 4}}}
        model.override(small)
    if "coco" in experiment:
        model.max_level = 5
    return task_factory.get_task(parameters.task)


@pytest.fixture
def images():
    """Two images, normalized as by the Model Garden."""
    pixels = np.random.default_rng(0).uniform(size=[2, SIZE, SIZE, 3])
    normalized = (pixels - preprocess_ops.MEAN_NORM) / preprocess_ops.STDDEV_NORM
    return tf.constant(normalized, tf.float32)


def in_network_range(images):
    pixels = images * preprocess_ops.STDDEV_NORM + preprocess_ops.MEAN_NORM
    return 2 * pixels - 1


def make_labels(experiment):
    """Labels of two images as the parsers of the Model Garden give them."""
    rng = np.random.default_rng(1)
    if "imagenet" in experiment:
        return tf.constant([0, 2])
    if "coco" not in experiment:
        masks = rng.integers(0, CLASSES, [2, SIZE, SIZE, 1]).astype(np.float32)
        valid = np.ones_like(masks, bool)
        return {"masks": tf.constant(masks), "valid_masks": tf.constant(valid)}
    sides = {str(level): SIZE // 2**level for level in range(3, 6)}
    num_anchors = sum(9 * side**2 for side in sides.values())
    return {
        "cls_weights": tf.ones([2, num_anchors]),
        "box_weights": tf.ones([2, num_anchors]),
        "cls_targets": {
            level: tf.constant(rng.integers(0, CLASSES, [2, side, side, 9]), tf.int32)
            for level, side in sides.items()
        },
        "box_targets": {
            level: tf.constant(rng.normal(size=[2, side, side, 36]), tf.float32)
            for level, side in sides.items()
        },
    }


def total_loss(task, model, images, labels):
    """The loss as the task's own training step computes it."""
    step = task.train_step(
        (images, labels), model, keras.optimizers.SGD(0.0), metrics=[]
    )
    return float(step["loss"])


def test_import_of_the_library_does_not_import_the_model_garden():
    code = "import sys, sact_tf; sys.exit('official' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("model_type", ["vanilla", "act", "act_early_stopping", "sact"])
def test_features_are_what_the_network_goes_on_with(model_type, images):
    backbone = model_garden.SactResNetBackbone(
        model="1_1_2_1", model_type=model_type, base_channels=2, tau=0.1
    )
    for variable in backbone.variables:  # moving averages of which to see the effect
        if "moving" in variable.name:
            variable.assign(tf.random.uniform(variable.shape, 0.5, 1.5))
    features = backbone(images, training=False)
    assert list(features) == ["2", "3", "4", "5"]
    network = backbone.network
    _, end_points = network.with_end_points(in_network_range(images), training=False)
    norms = [block.units[0].preact for block in network.blocks[1:]]
    for level, norm in zip(range(2, 6), [*norms, network.final_bn]):
        feature = features[str(level)]
        side = SIZE // 2**level
        assert feature.shape == [2, side, side, 8 * 2 ** (level - 2)]
        block = end_points[f"block{level - 1}"]
        np.testing.assert_allclose(feature, norm(block, training=False), atol=1e-5)
        assert float(tf.reduce_min(feature)) == 0
    # The classifier, which nothing uses, is neither trained nor saved.
    unused = {variable.ref() for variable in network.classifier.variables}
    expected = {v.ref() for v in network.variables} - unused
    assert {variable.ref() for variable in backbone.variables} == expected


@pytest.mark.parametrize("sides", [(None, None), (64, 64), (65, 33), (100, 47)])
def test_output_specs(sides):
    backbone = model_garden.SactResNetBackbone(
        (None, *sides, 3), model="1_1_1_1", model_type="vanilla", base_channels=2
    )
    specs = backbone.output_specs
    features = backbone(tf.zeros([1, *(side or 70 for side in sides), 3]))
    for level, feature in features.items():
        assert specs[level].as_list()[3] == feature.shape[3]
        if None not in sides:
            assert specs[level].as_list()[1:] == feature.shape[1:]
        else:
            assert specs[level].as_list()[:3] == [None] * 3


def test_training_moves_averages_once(images):
    """As training the network itself does, though features normalize twice."""
    backbone = model_garden.SactResNetBackbone(
        model="1_1_2_1", model_type="sact", base_channels=2
    )
    network = backbone.network
    before = network.get_weights()
    backbone(images, training=True)
    after = network.get_weights()
    network.set_weights(before)
    network(in_network_range(images), training=True)
    for ours, expected in zip(after, network.get_weights()):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert any((a != b).any() for a, b in zip(before, after))


@pytest.mark.parametrize(
    "experiment, model_type",
    [("sact_resnet_imagenet", "act"), *((e, "sact") for e in model_garden.EXPERIMENTS)],
)
def test_ponder_cost_enters_the_loss_once(experiment, model_type, images):
    labels = make_labels(experiment)
    tasks = [
        make_task(experiment, model_type=model_type, tau=tau) for tau in (TAU, 0.0)
    ]
    model, without = (task.build_model() for task in tasks)
    without.set_weights(model.get_weights())
    difference = total_loss(tasks[0], model, images, labels) - total_loss(
        tasks[1], without, images, labels
    )
    end_points = model.backbone.end_points
    costs = [end_points[f"block{k}/ponder_cost"] for k in range(1, 5)]
    ponder_cost = sum(float(tf.reduce_mean(cost)) for cost in costs)
    assert ponder_cost > 4
    np.testing.assert_allclose(difference, TAU * ponder_cost, rtol=1e-4)
    per_image = model_garden.adaptivity(end_points)["ponder_cost"]
    np.testing.assert_allclose(np.mean(per_image), ponder_cost, rtol=1e-5)


@pytest.mark.parametrize("experiment", model_garden.EXPERIMENTS)
def test_halting_weights_are_trained(experiment, images):
    task = make_task(experiment)
    model = task.build_model()
    optimizer = keras.optimizers.SGD(0.1)
    heads = [v for v in model.trainable_variables if "halting_proba" in v.name]
    assert heads
    before = [variable.numpy() for variable in heads]
    task.train_step((images, make_labels(experiment)), model, optimizer, metrics=[])
    changed = [(v.numpy() != b).any() for v, b in zip(heads, before)]
    # A convolution before a batch normalization has biases without gradient; all else
    # moves.
    assert all(c for c, v in zip(changed, heads) if "bias" not in v.name)


@pytest.mark.parametrize("model_type", ["vanilla", "sact"])
def test_weight_decay_is_the_model_gardens_once(model_type, images):
    decay = 0.02
    task = make_task("sact_resnet_imagenet", decay, model_type=model_type, tau=0.0)
    model = task.build_model()
    decayed = [v for v in model.trainable_variables if "kernel" in v.name]
    expected = decay / 2 * sum(float(tf.reduce_sum(v**2)) for v in decayed)
    model(images, training=True)
    np.testing.assert_allclose(float(tf.add_n(model.losses)), expected, rtol=1e-5)
    task = make_task("sact_resnet_imagenet", 0.0, model_type=model_type, tau=0.0)
    model = task.build_model()
    model(images, training=True)
    assert float(tf.reduce_sum(model.losses)) == 0


def test_checkpoints_to_start_from(tmp_path):
    options = dict(model="1_1_2_1", num_classes=7, base_channels=2)
    paths = {}
    for model_type in ("vanilla", "sact"):
        network = sact_tf.imagenet_resnet(model_type=model_type, **options)
        paths[model_type] = str(tmp_path / model_type / "model.ckpt-0")
        sact_tf.save_slim_checkpoint(network, paths[model_type])
    for source in ("vanilla", "sact"):
        task = make_task("sact_resnet_imagenet", init_checkpoint=paths[source])
        backbone = task.build_model().backbone
        reader = tf.train.load_checkpoint(paths[source])
        variables = sact_tf.slim_variables(backbone.network)
        for name, variable in variables.items():
            is_loaded = "/logits/" not in name
            is_loaded &= source == "sact" or "/halting_proba/" not in name
            if is_loaded:
                np.testing.assert_array_equal(variable, reader.get_tensor(name))
    with pytest.raises(ValueError, match="1_1_2_1 units per block.* has 1_1_2_2"):
        make_task(
            "sact_resnet_imagenet", model="1_1_2_2", init_checkpoint=paths["sact"]
        ).build_model()
    with pytest.raises(sact_tf.CheckpointMismatchError, match="not used"):
        make_task(
            "sact_resnet_imagenet", model_type="vanilla", init_checkpoint=paths["sact"]
        ).build_model()


def test_classification_checkpoint_starts_detection(tmp_path):
    """The Model Garden's way: a checkpoint's backbone serves every task."""
    trained = make_task("sact_resnet_imagenet").build_model()
    path = tf.train.Checkpoint(model=trained, **trained.checkpoint_items).write(
        str(tmp_path / "ckpt")
    )
    task = make_task("retinanet_sact_resnetfpn_coco")
    task.task_config.init_checkpoint = path
    task.task_config.init_checkpoint_modules = "backbone"
    model = task.build_model()
    task.initialize(model)
    for ours, expected in zip(model.backbone.weights, trained.backbone.weights):
        np.testing.assert_array_equal(ours, expected)


def test_reports_only_of_this_backbone():
    def names(**network):
        task = make_task("sact_resnet_imagenet", **network)
        return [metric.name for metric in task.build_metrics()]

    accuracies = ["accuracy", "top_5_accuracy"]
    assert names(model_type="vanilla") == [*accuracies, "flops"]
    units = [f"block{k}/units" for k in range(1, 5)]
    assert names() == [*accuracies, "flops", "ponder_cost", *units]
    task = make_task("sact_resnet_imagenet")
    task.task_config.model.backbone.type = "resnet"
    assert [metric.name for metric in task.build_metrics()] == accuracies


def test_perforated_in_evaluation(images):
    task = make_task("sact_resnet_imagenet", execution="perforated")
    model = task.build_model()
    masked = make_task("sact_resnet_imagenet").build_model()
    masked.set_weights(model.get_weights())
    np.testing.assert_allclose(
        model(images, training=False), masked(images, training=False), atol=1e-4
    )


@pytest.mark.long
def test_the_model_gardens_export(tmp_path):
    """It asks for the experiment, and a checkpoint of its training."""
    parameters = exp_factory.get_exp_config("sact_resnet_imagenet")
    task = make_task("sact_resnet_imagenet")
    parameters.task = task.task_config
    model = task.build_model()
    checkpoint = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    export_saved_model_lib.export_inference_graph(
        "image_tensor", None, [SIZE, SIZE], parameters, checkpoint, str(tmp_path)
    )
    serve = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    pixels = np.random.default_rng(0).integers(0, 256, [2, SIZE, SIZE, 3])
    image = tf.cast(pixels, tf.uint8)
    cropped = tf.stack([preprocess_ops.center_crop_image(x) for x in image])
    resized = tf.image.resize(cropped, [SIZE, SIZE])
    normalized = preprocess_ops.normalize_image(
        resized, preprocess_ops.MEAN_RGB, preprocess_ops.STDDEV_RGB
    )
    np.testing.assert_allclose(
        serve(inputs=image)["logits"], model(normalized, training=False), atol=1e-4
    )


def test_other_tasks_are_refused():
    experiment = exp_factory.get_exp_config("maskrcnn_resnetfpn_coco")
    with pytest.raises(ValueError, match="must be one of .* got MaskRCNNTask"):
        model_garden.with_sact_resnet(experiment)


def test_config_round_trip():
    options = dict(model="1_1_1_2", model_type="sact", base_channels=3, tau=0.2)
    backbone = model_garden.SactResNetBackbone(weight_decay=0.1, **options)
    copy = model_garden.SactResNetBackbone.from_config(backbone.get_config())
    assert copy.get_config() == backbone.get_config()
    assert options.items() <= copy.get_config().items()


def test_backbone_of_another_form(images, tmp_path):
    form = dict(stem_pool="symmetric", downsample="input")
    options = dict(model="1_1_2_1", base_channels=2)
    network = sact_tf.imagenet_resnet(
        model_type="vanilla", num_classes=5, **options, **form
    )
    path = str(tmp_path / "network.keras")
    network.save(path)
    task = make_task("sact_resnet_imagenet", init_checkpoint=path, **form)
    backbone = task.build_model().backbone
    features = backbone(images, training=False)
    x, _ = backbone.network.run_blocks(in_network_range(images), False)
    np.testing.assert_array_equal(backbone.stem.kernel, network.stem.kernel)
    assert backbone.get_config()["stem_pool"] == "symmetric"
    expected = backbone.final_bn(x, training=False)
    np.testing.assert_allclose(features["5"], expected, atol=1e-4)
