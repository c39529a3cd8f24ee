"""What the README shows works."""

import pathlib
import re

import numpy as np
import tensorflow as tf
import tf_keras as keras

README = (pathlib.Path(__file__).parent.parent / "README.md").read_text()


def test_example_of_a_users_own_unit():
    (example,) = [
        code
        for code in re.findall(r"```python\n(.+?)```", README, re.S)
        if "class MyUnit" in code
    ]
    names = {}
    exec(example, names)
    model = names["model"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    images = tf.random.stateless_normal([2, 8, 8, 3], [1, 2])
    labels = np.array([1, 2])
    # The loss of the first step has the ponder cost in it.
    expected = loss(labels, model(images, training=True)) + tf.add_n(model.losses)
    history = model.fit(images, labels, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)


def test_pictures_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (pathlib.Path(__file__).parent.parent / picture).is_file()
