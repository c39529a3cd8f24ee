"""Detectors learn; what they write while they do."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from object_detection import evaluation, training
from object_detection.data import scenes


def overfit(make_detector, log_dir, num_images, size, steps, model_type, **options):
    """Trains on a few scenes; returns the average precision on the same."""
    keras.utils.set_random_seed(0)
    examples = scenes.load(
        "train", num_images, image_size=size, short_side=size, cache=True
    )
    model = make_detector(
        model_type,
        model="1_1_1_1",
        num_classes=10,
        aspect_ratios=(1.0,),
        **{
            "num_proposals": 50,
            "num_region_samples": 32,
            "num_anchor_samples": 64,
            "foreground_fraction": 0.5,
            **options,
        },
    )
    training.train(
        model,
        examples,
        str(log_dir),
        steps,
        batch_size=min(num_images, 4),
        rate=training.learning_rate(steps, 0.02, warmup_steps=5),
        clip_norm=5.0,
        seed=0,
        verbose=0,
    )
    return evaluation.evaluate(model, examples)[0]["AP50"]


def test_overfits_two_scenes(make_detector, tmp_path):
    # As many samples as there are anchors and proposals: none is drawn at random.
    options = dict(num_proposals=24, num_region_samples=28, foreground_fraction=1.0)
    assert overfit(make_detector, tmp_path, 2, 64, 240, "sact", **options) > 0.8
    written = set()
    for path in tmp_path.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            written |= {value.tag for value in event.summary.value}
    assert {"detections/0", "heatmaps/1", "train/rpn_box", "Learning Rate"} <= written
    assert "image_0/Total Flops" in written


@pytest.mark.long
@pytest.mark.parametrize("model_type", ["vanilla", "sact"])
def test_overfits_eight_scenes(make_detector, tmp_path, model_type):
    assert overfit(make_detector, tmp_path, 8, 96, 500, model_type) > 0.95


def test_schedule_of_the_paper():
    rate = training.learning_rate(1_200_000)
    rates = [float(rate(k)) for k in (0, 800_000, 800_001, 1_000_001)]
    assert rates == pytest.approx([3e-4, 3e-4, 3e-5, 3e-6])
    rate = training.learning_rate(120, 0.1, warmup_steps=10)
    rates = [float(rate(k)) for k in (0, 5, 10, 79, 81, 101)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    "batch_size, options, message",
    [
        (1, {"train_batch_norm": True}, "execution must be 'masked' to train with"),
        (2, {}, "batch_size must be 1 .*; got 2 for 1"),
    ],
)
def test_what_cannot_be_skipped(make_detector, tmp_path, batch_size, options, message):
    model = make_detector("sact", execution="perforated", **options)
    with pytest.raises(ValueError, match=message):
        training.train(model, scenes.load("train", 2), str(tmp_path), 1, batch_size)


def test_perforated_training_is_that_of_masked_execution(make_detector, monkeypatch):
    masked = make_detector("sact")
    perforated = masked.with_execution("perforated")
    differences = []
    for batch in scenes.load("train", 5, short_side=64).evaluation_batches(1).take(5):
        data = {
            "image": batch["image"],
            "size": batch["size"],
            "boxes": tf.constant([[[4.0, 6.0, 40.0, 50.0], [20.0, 8.0, 60.0, 44.0]]]),
            "classes": tf.constant([[1, 2]]),
        }
        drawn = []
        draw = masked._sample_regions

        def draw_once(*arguments, drawn=drawn, draw=draw):
            # Rounding may change which of nearly equal proposals are kept.
            drawn.append(drawn[0] if drawn else draw(*arguments))
            return drawn[0]

        gradients = []
        for model in (masked, perforated):
            keras.utils.set_random_seed(3)  # of anchors
            with monkeypatch.context() as patch:
                patch.setattr(model, "_sample_regions", draw_once)
                with tf.GradientTape() as tape:
                    terms, end_points = model.detection_losses(data, trains_rule=True)
                    loss = tf.add_n([*terms.values(), *model.losses])
            gradients.append(tape.gradient(loss, model.trainable_variables))
        assert len(drawn) == 2
        assert end_points["flops"] < end_points["dense_flops"]
        assert [a is None for a in gradients[0]] == [b is None for b in gradients[1]]
        pairs = [
            map(tf.convert_to_tensor, p) for p in zip(*gradients) if p[0] is not None
        ]
        differences.append(
            [np.abs(a - b).max() / (np.abs(a).max() + 1e-6) for a, b in pairs]
        )
    # A gradient jumps where rounding carries a feature past the corner of a ReLU, by up
    # to a tenth: of single images, while a fault of the execution is in all of them.
    worst = np.max(differences, axis=1)
    assert np.median(worst) < 1e-3, worst
