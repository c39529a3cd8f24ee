"""The detector: its features, padding, executions, checkpoints and bad options."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy import optimize

import sact_tf
from object_detection.faster_rcnn import FasterRCNN, Options
from sact_tf.checkpoints import slim_variables
from sact_tf.pretrained import load_first_weights
from sact_tf.segmentation import SegmentationNetwork

SIZES = [[61, 90], [70, 52]]


@pytest.fixture
def images():
    """Two images of different sizes in one padded batch."""
    x = np.random.default_rng(0).uniform(-1, 1, [2, 70, 90, 3]).astype(np.float32)
    return tf.constant(x)


def detections_of(result):
    count = int(result["num_detections"][0])
    keys = ("boxes", "scores", "classes")
    return [result[f"detection_{key}"][0, :count].numpy() for key in keys]


def test_features_are_the_networks(make_detector, images):
    """With 4 dividing the image's size, of whatever parity the network sees."""
    detector = make_detector("sact")
    network = sact_tf.imagenet_resnet("1_2_2_1", "sact", 3, base_channels=4)
    variables = slim_variables(detector)
    for name, variable in slim_variables(network).items():
        if name in variables:
            variable.assign(variables[name])
    x = images[:, :64, :88]
    features, end_points = detector.extract(x, tf.constant([[64, 88]] * 2))
    _, expected = network.with_end_points(x)
    np.testing.assert_allclose(features, expected["block3"], atol=1e-4)
    blocks = ("block1", "block2", "block3")
    for block in blocks:
        key = f"{block}/ponder_cost"
        np.testing.assert_allclose(end_points[key], expected[key], atol=1e-4)
    counts = sum(expected[f"{block}/flops"] for block in blocks)
    stem = 2 * 7 * 7 * 3 * 64 * 32 * 44
    np.testing.assert_array_equal(end_points["flops"], counts + stem)
    assert detector.feature_extractor.stride == 16


def ponder_losses(detector):
    """The losses that the feature extractor's blocks added when they last ran."""
    return [float(block.losses[0]) for block in detector.feature_extractor.blocks]


def same_order(boxes, others):
    """Puts two lists of boxes in the order in which they are closest, one to one."""
    boxes, others = np.asarray(boxes), np.asarray(others)
    distances = np.abs(boxes[:, np.newaxis] - others).max(-1)
    rows, columns = optimize.linear_sum_assignment(distances)
    return boxes[rows], others[columns]


@pytest.mark.parametrize("model_type", ["vanilla", "act", "sact"])
def test_padded_batch_equals_single_images(make_detector, images, model_type):
    detector = make_detector(model_type)
    batch = detector(images, tf.constant(SIZES))
    features, end_points = detector.extract(images, tf.constant(SIZES))
    losses_together, losses_alone = ponder_losses(detector), []
    for k, (height, width) in enumerate(SIZES):
        image = images[k : k + 1, :height, :width]
        alone = detector(image)
        own, own_end_points = detector.extract(image, tf.constant([[height, width]]))
        losses_alone.append(ponder_losses(detector))
        for key in ("flops", "dense_flops"):
            assert int(end_points[key][k]) == int(own_end_points[key][0])
        rows, columns = own.shape[1:3]
        np.testing.assert_allclose(features[k, :rows, :columns], own[0], atol=1e-4)
        assert not np.any(features[k, rows:]) and not np.any(features[k, :, columns:])
        if model_type == "sact":
            cost = end_points["block1/ponder_cost"][k].numpy()
            expected = own_end_points["block1/ponder_cost"][0].numpy()
            rows, columns = expected.shape
            np.testing.assert_allclose(cost[:rows, :columns], expected, atol=1e-4)
            np.testing.assert_allclose(cost.sum(), expected.sum(), rtol=1e-5)
        scores = "detection_scores"
        np.testing.assert_allclose(batch[scores][k], alone[scores][0], atol=2e-3)
        # Where scores are equal but for rounding, their order is not ours to choose.
        np.testing.assert_allclose(
            *same_order(batch["detection_boxes"][k], alone["detection_boxes"][0]),
            atol=2e-3,
        )
    if model_type != "vanilla":
        assert min(losses_together) > 0.1
        expected = np.mean(losses_alone, 0)
        np.testing.assert_allclose(losses_together, expected, rtol=1e-4)


def test_forced_to_run_all_units_it_equals_vanilla(make_detector, images):
    sact, vanilla = make_detector("sact"), make_detector("vanilla")
    variables = slim_variables(sact)
    for name, variable in slim_variables(vanilla).items():
        variable.assign(variables[name])
    for block in sact.blocks:
        for head in block.heads:
            for weight in head.trainable_weights:
                weight.assign(tf.zeros_like(weight))
            head.local_conv.bias.assign([-100.0])
    sizes = tf.constant(SIZES)
    results = [detector(images, sizes) for detector in (sact, vanilla)]
    for key in ("detection_boxes", "detection_scores", "detection_classes"):
        np.testing.assert_allclose(results[0][key], results[1][key], atol=2e-3)
    dense = [result["end_points"]["dense_flops"].numpy() for result in results]
    np.testing.assert_array_equal(dense[0], dense[1])
    np.testing.assert_array_equal(dense[1], results[1]["end_points"]["flops"])
    assert (results[0]["end_points"]["flops"].numpy() > dense[0]).all()  # the heads


@pytest.mark.parametrize("model_type", ["vanilla", "act", "sact"])
def test_perforated_equals_masked(make_detector, images, model_type):
    masked = make_detector(model_type)
    perforated = masked.with_execution("perforated")
    x = images[:1, :61]
    results = [detector(x) for detector in (masked, perforated)]
    for one, other in zip(*map(detections_of, results)):
        np.testing.assert_allclose(one, other, atol=2e-3)
    flops = [int(result["end_points"]["flops"][0]) for result in results]
    assert flops[0] == flops[1]
    if model_type == "sact":
        assert flops[0] < int(results[0]["end_points"]["dense_flops"][0])


def test_perforated_takes_no_padding(make_detector, images):
    detector = make_detector("sact", execution="perforated")
    with pytest.raises(tf.errors.InvalidArgumentError, match="need execution='masked'"):
        detector(images, tf.constant(SIZES))


def test_a_shift_by_one_stride_shifts_the_proposals(make_detector):
    detector = make_detector("vanilla", model="1_1_1_1")
    detector.rpn.box.kernel.assign(0.02 * detector.rpn.box.kernel)  # none is clipped
    image = np.zeros([1, 320, 320, 3], np.float32)
    image[:, 140:180, 130:190] = np.random.default_rng(0).normal(size=[40, 60, 3])
    sizes = tf.constant([[320, 320]])
    found = []
    for shift in (0, 1):
        x = np.roll(image, 16 * shift, axis=(1, 2))
        features, _ = detector.extract(tf.constant(x), sizes)
        window = np.zeros([1, 20, 20], bool)  # far from the border
        window[:, 6 + shift : 14 + shift, 6 + shift : 14 + shift] = True
        found.append(detector.propose(features, tf.constant(window), sizes)["boxes"])
    assert np.min(found[0]) > 0 and np.max(found[1]) < 320
    np.testing.assert_allclose(found[0] + 16.0, found[1], atol=1e-2)


def test_losses_of_hand_made_predictions(make_detector, images):
    """Without objects there are no boxes to refine; everything is background."""
    detector = make_detector("vanilla")
    batch = dict(
        image=images,
        size=tf.constant(SIZES),
        boxes=tf.fill([2, 3, 4], -1.0),
        classes=tf.fill([2, 3], -1),
    )
    losses, _ = detector.detection_losses(batch)
    assert float(losses["rpn_box"]) == 0 and float(losses["box_refinement"]) == 0
    detector.box_classifier.class_conv.kernel.assign(
        tf.zeros_like(detector.box_classifier.class_conv.kernel)
    )
    losses, _ = detector.detection_losses(batch)
    assert float(losses["box_class"]) == pytest.approx(np.log(4), rel=1e-5)


def test_batch_norm_stays_frozen_unless_asked(make_detector, images):
    batch = dict(
        image=images,
        size=tf.constant(SIZES),
        boxes=tf.constant([[[8.0, 8, 30, 40]], [[5, 9, 40, 30]]]),
        classes=tf.constant([[1], [2]]),
    )
    detector = make_detector("sact")
    moments = [v for n, v in slim_variables(detector).items() if "moving" in n]
    before = [v.numpy() for v in moments]
    detector.detection_losses(batch)
    for old, new in zip(before, moments):
        np.testing.assert_array_equal(old, new)
    detector.detection_losses(batch, training=True)
    assert all((old != new.numpy()).any() for old, new in zip(before, moments))
    assert len(moments) > 20


def test_tau_weighs_the_feature_extractor_only(make_detector):
    taus = [block.tau for block in make_detector("sact").blocks]
    assert taus == [0.1, 0.1, 0.1, 0.0]


@pytest.mark.parametrize("stride", [1, 2])
def test_starts_from_a_classification_network(make_detector, tmp_path, stride):
    """Blocks 1 to 4 are found whatever the stride, and from SACT with its halting."""
    network = sact_tf.imagenet_resnet("1_2_2_1", "sact", 11, base_channels=4)
    path = sact_tf.save_slim_checkpoint(network, str(tmp_path / "model.ckpt-0"))
    stored = slim_variables(network)
    for model_type in ("sact", "vanilla"):
        if model_type == "vanilla":
            network = sact_tf.imagenet_resnet("1_2_2_1", "vanilla", 11, 4)
            stored = slim_variables(network)
            path = sact_tf.save_slim_checkpoint(network, str(tmp_path / "v"))
        detector = make_detector("sact", block4_stride=stride)
        loaded = load_first_weights(detector, path)
        variables = slim_variables(detector)
        assert set(loaded) == {n for n in stored if "/logits/" not in n}
        for name in loaded:
            np.testing.assert_array_equal(variables[name], stored[name])
        assert any("/block4/" in name for name in loaded)


def test_starts_from_a_detector(make_detector, tmp_path):
    vanilla = make_detector("vanilla")
    prefix = str(tmp_path / "model.ckpt-3")
    sact_tf.save_slim_checkpoint(vanilla, prefix, 3)
    sact = make_detector("sact")
    loaded = load_first_weights(sact, str(tmp_path))
    assert set(loaded) == set(slim_variables(vanilla))
    assert "rpn/conv/weights" in loaded and "box_classifier/box/biases" in loaded
    with pytest.raises(sact_tf.CheckpointMismatchError, match="rpn/score"):
        load_first_weights(make_detector("sact", anchor_sizes=(9, 8, 7)), str(tmp_path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_first_weights(sact, str(tmp_path / "nowhere"))


def test_starts_from_a_segmentation_network_and_the_reverse(make_detector, tmp_path):
    network = sact_tf.imagenet_resnet("1_2_2_1", "sact", 0, base_channels=4)
    segmenter = SegmentationNetwork(network, 3, head_channels=4, bins=(1,))
    detector = make_detector("sact")
    for k, (source, model) in enumerate([(segmenter, detector), (detector, segmenter)]):
        path = sact_tf.save_slim_checkpoint(source, str(tmp_path / f"model.ckpt-{k}"))
        source.network.stem.kernel.assign_add(tf.ones_like(source.network.stem.kernel))
        loaded = load_first_weights(model, path)
        wanted = slim_variables(model.network)
        assert set(loaded) == {name for name in wanted if "/logits/" not in name}
        np.testing.assert_array_equal(
            model.network.stem.kernel, tf.train.load_variable(path, loaded_stem(loaded))
        )


def loaded_stem(names):
    """Returns the name of the first convolution's kernel."""
    (name,) = (n for n in names if n.endswith("/conv1/weights") and "block" not in n)
    return name


def test_config_round_trip(make_detector):
    detector = make_detector("sact", anchor_sizes=(8, 24))
    copy = FasterRCNN.from_config(detector.get_config())
    assert copy.options == detector.options
    assert [v.shape for v in copy.weights] == [v.shape for v in detector.weights]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(anchor_sizes=()), r"anchor_sizes must be numbers > 0; got \(\)"),
        (dict(aspect_ratios=(1.0, -2.0)), "aspect_ratios must be"),
        (dict(block4_stride=3), "block4_stride must be 1 or 2; got 3"),
        (dict(crop_size=15), "crop_size must be a multiple of pool_size 7; got 15"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
        FasterRCNN(0)
    with pytest.raises(ValueError, match="model_type must be"):
        FasterRCNN(2, "1_1_1_1", "sct", base_channels=4)


def test_first_weights_for_other_classes(make_detector, tmp_path):
    source, detector = make_detector(), make_detector(num_classes=5)
    path = sact_tf.save_slim_checkpoint(source, str(tmp_path / "model.ckpt-1"))
    with pytest.raises(sact_tf.CheckpointMismatchError, match="box_classifier/class"):
        load_first_weights(detector, path)
    names = load_first_weights(detector, path, without_classifier=True)
    others = {n for n in slim_variables(detector) if n.startswith("box_classifier/")}
    assert set(names) == set(slim_variables(detector)) - others


def test_first_weights_of_another_form(tmp_path):
    options = dict(stem_pool="zeros", downsample="input", base_channels=4)
    network = sact_tf.imagenet_resnet("1_2_2_1", "vanilla", 7, **options)
    path = str(tmp_path / "network.keras")
    network.save(path)
    detector = FasterRCNN(3, "1_2_2_1", "sact", **options)
    assert any("block3" in name for name in load_first_weights(detector, path))
    np.testing.assert_array_equal(detector.network.stem.kernel, network.stem.kernel)
    with pytest.raises(ValueError, match="make it with stem_pool='zeros'"):
        load_first_weights(FasterRCNN(3, "1_2_2_1", base_channels=4), path)


@pytest.mark.long
@pytest.mark.parametrize("estimator", ["relaxation", "reinforce"])
def test_a_detectors_rule_trains_whatever_batch_normalization_does(estimator):
    """All heads get gradients, of blocks 1 to 3 and of the box classifier's block."""
    model = FasterRCNN(
        2,
        "1_2_1_2",
        "pact",
        base_channels=8,
        estimator=estimator,
        options=Options(
            anchor_sizes=(16,),
            aspect_ratios=(1.0,),
            num_proposals=8,
            num_region_samples=8,
            crop_size=7,
        ),
    )
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    heads = [head for block in model.blocks for head in block.heads]
    assert len(heads) == 2
    before = [head.local_conv.bias.numpy() for head in heads]
    averages = model.blocks[1].units[0].preact.moving_mean.numpy()
    batch = {
        "image": tf.random.stateless_normal([1, 48, 64, 3], [1, 2]),
        "size": tf.constant([[48, 64]]),
        "boxes": tf.constant([[[4.0, 4.0, 30.0, 30.0]]]),
        "classes": tf.constant([[1]]),
    }
    for _ in range(2):  # the first reward has no baseline to differ from
        logs = model.train_step(batch)
    assert np.isfinite(float(logs["loss"]))
    for head, old in zip(heads, before):
        assert np.any(head.local_conv.bias.numpy() != old)
    np.testing.assert_array_equal(model.blocks[1].units[0].preact.moving_mean, averages)
