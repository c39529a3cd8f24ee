"""The parity program: its data, and that every rule learns a short task."""

import json

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver


def test_vectors_and_their_parity(program):
    x, y = program.parity_batch(tf.constant([1, 2]), 4000, 6)
    assert x.shape == [4000, 1, 6] and y.shape == [4000, 1, 1]
    x, y = x.numpy()[:, 0], y.numpy()[:, 0, 0]
    assert set(np.unique(x)) == {-1, 0, 1}
    np.testing.assert_array_equal(y, (x > 0).sum(1) % 2)
    counts = np.abs(x).sum(1).astype(int)
    assert (np.abs(x) == (np.arange(6) < counts[:, np.newaxis])).all()
    np.testing.assert_allclose(np.bincount(counts)[1:] / 4000, 1 / 6, atol=0.03)
    assert abs((x == 1).sum() / (x != 0).sum() - 0.5) < 0.02


_long = (
    pytest.param(name, marks=pytest.mark.long) for name in ("pondernet", "vanilla")
)


@pytest.mark.parametrize("model_type", ["pact_image", *_long])
def test_learns_short_vectors(program, model_type, tmp_path, capsys):
    with flagsaver.flagsaver(
        model_type=model_type,
        size=3,
        units=16,
        repetitions=2,
        max_updates=4,
        learning_rate=0.01,
        max_number_of_steps=300,
        eval_every=150,
        num_examples=500,
        output_dir=str(tmp_path),
    ):
        program.main()
    results = json.loads((tmp_path / "parity.json").read_text())
    assert results["curve"][-1]["accuracy"] > 0.8
    assert 1 <= results["curve"][-1]["updates"] <= 4
    assert "olved after" in capsys.readouterr().out


def test_bad_options_are_named(refusal):
    refused = dict(model_type="pact_image", output_dir="")
    assert "temperature" in refusal(temperature=0.0, **refused)
    assert "lambda_p" in refusal(model_type="pondernet", lambda_p=1.0)
