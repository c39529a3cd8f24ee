"""The program that times iterative networks."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver

TINY = dict(
    max_iterations=["1", "4", "1", "1"],
    base_channels=2,
    num_classes=3,
    image_size=16,
    batch_sizes=["2"],
    shares=["0.5"],
    repetitions=1,
    json=True,
)


def test_times(program, capsys):
    with flagsaver.flagsaver(**TINY):
        program.main()
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["batch_size"] == 2 and 0 < row["relative_macs"] < 1
    assert row["ratio"] == pytest.approx(row["relative_time"] / row["relative_macs"])


def test_iterations_of_images(program):
    for batch_size in (1, 8):
        for share in (0.25, 0.5, 1.0):
            units = program.iterations(36, share, batch_size)
            assert units.min() >= 1 and units.max() <= 36
            if share < 0.6:
                np.testing.assert_allclose(units.mean(), 36 * share, atol=0.5)


def test_shares_are_fractions(program):
    with flagsaver.flagsaver(shares=["1.5"]):
        with pytest.raises(ValueError, match="--shares: expected numbers in"):
            program.main()
