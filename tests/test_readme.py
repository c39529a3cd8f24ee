"""What the README shows works."""

import pathlib
import re

import numpy as np
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
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.zeros([2, 8, 8, 3], np.float32)
    history = model.fit(images, np.array([1, 2]), verbose=0)
    assert np.isfinite(history.history["loss"][0])


def test_pictures_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        assert (pathlib.Path(__file__).parent.parent / picture).is_file()
