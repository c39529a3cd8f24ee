"""Feed-forward networks, and how any classifier is trained and scored."""

import numpy as np
import pytest
import tf_keras as keras

from sact_tf import checkpoints, classifiers
from sact_tf.data.examples import Examples
from sact_tf.networks import feedforward
from sact_tf.perforation import survey


def test_nin():
    model = feedforward.nin()
    trained = sum(v.shape.num_elements() for v in model.trainable_variables)
    assert trained == 968394 and model.output_shape == (None, 10)
    assert list(survey(model).convolutions) == ["conv1", "conv2", "conv3"]
    dropped = feedforward.nin(dropout=0.5)
    assert [x.name for x in dropped.layers if "dropout" in x.name] == [
        *("dropout1", "dropout2")
    ]


def test_alexnet():
    model = feedforward.alexnet(7, (67, 67, 3))
    assert list(survey(model).convolutions) == [f"conv{k}" for k in range(1, 6)]
    assert model.output_shape == (None, 7)
    with pytest.raises(ValueError, match="sides >= 67 in AlexNet; got 66x70"):
        feedforward.alexnet(7, (66, 70, 3))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_classes=0), "num_classes must be an integer >= 1"),
        (dict(input_shape=(32, 32)), "input_shape must be .height, width, channels"),
        (dict(input_shape=(0, 32, 3)), "input_shape must be an integer"),
        (dict(dropout=2), "dropout must be a finite number from 0 to 1"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        feedforward.nin(**arguments)


def classifier(softmax=False):
    return keras.Sequential(
        [
            keras.Input([6, 6, 3]),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, "softmax" if softmax else None, name="classes"),
        ]
    )


def examples():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [16, 6, 6, 3]).astype(np.uint8)
    return Examples(images, np.arange(16) % 3, 3)


def test_logits_and_probabilities_have_the_same_loss():
    logits, softmax = classifier(), classifier(softmax=True)
    softmax.set_weights(logits.get_weights())
    assert [classifiers.gives_probabilities(m) for m in (logits, softmax)] == [0, 1]
    whole = keras.Model(logits.input, keras.layers.Softmax()(logits.output))
    assert classifiers.gives_probabilities(whole)
    batches = examples().evaluation_batches(5)
    scores = [classifiers.score(m, batches) for m in (logits, softmax)]
    assert scores[0]["images"] == 16
    assert scores[0]["accuracy"] == scores[1]["accuracy"]
    assert scores[0]["loss"] == pytest.approx(scores[1]["loss"], rel=1e-5)
    images, labels = (np.concatenate(x) for x in zip(*batches))
    right = np.argmax(logits(images), -1) == labels
    assert scores[0]["accuracy"] == right.mean()


def test_training_goes_on(tmp_path):
    log_dir = str(tmp_path)
    model = classifier()
    before = model.get_layer("conv").kernel.numpy()
    classifiers.train(
        model, examples(), log_dir, 2, batch_size=8, learning_rate=0.1, verbose=False
    )
    assert (model.get_layer("conv").kernel.numpy() != before).any()
    names = checkpoints.slim_variables(model)
    assert set(names) == {
        *("conv/kernel", "conv/bias", "classes/kernel", "classes/bias")
    }
    again = classifier()
    last = classifiers.train(
        again, examples(), log_dir, 2, batch_size=8, learning_rate=0.1, verbose=False
    )
    assert last.endswith("model.ckpt-2")
    for own, other in zip(again.get_weights(), model.get_weights()):
        assert (own == other).all()


def test_variables_of_one_name_are_refused():
    inner = keras.Sequential([keras.Input([2]), keras.layers.Dense(2, name="same")])
    x = keras.layers.Dense(2, name="same")(inner(inner.input))
    model = keras.Model(inner.input, x)
    with pytest.raises(ValueError, match="two variables same/kernel"):
        checkpoints.slim_variables(model)


def test_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"outputs of shape \(None, 3\); expected"):
        classifiers.check_labels(classifier(), 10)


def test_rate_rises_and_falls():
    rate = classifiers.cosine_rate(0.4, 100)
    rates = [float(rate(step)) for step in (0, 5, 52, 100)]
    np.testing.assert_allclose(rates[::3], [0, 0], atol=1e-6)
    assert rates[1] == pytest.approx(0.4) and 0.15 < rates[2] < 0.25
    assert float(classifiers.cosine_rate(0.4, 10)(0)) == pytest.approx(0.4)
