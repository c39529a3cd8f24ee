"""The benchmark program on small networks and layers."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver

from experiments.benchmarks.tools import imposed_units, in_tiles


@pytest.fixture
def run(program, capsys):
    """Returns a function that runs the program and reads its JSON lines."""

    def run(**values):
        with flagsaver.flagsaver(json=True, repetitions=1, **values):
            program.main()
        lines = capsys.readouterr().out.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    return run


@pytest.mark.parametrize("pattern", ["blob", "random"])
def test_imposed_units_have_the_mean(pattern):
    units = imposed_units(38, 63, 23, 11.0, pattern)
    assert abs(units.mean() - 11.0) < 0.02
    assert units.min() >= 1 and units.max() <= 23


@pytest.mark.long
def test_network(run):
    values = dict(network="cifar", model="2", image_size="16x24")
    rows = run(units_per_block=["1.5", "1.2", "2"], **values)
    sides = ["dense", "masked", "native", "twin", "tiled"]
    assert [row["side"] for row in rows] == sides
    counts = [row["relative_flops"] for row in rows]
    assert counts[0] == 1 and counts[1] == counts[2] == counts[3] < 0.95
    values.update(pattern="full", sides=["dense", "native"])
    _, full = run(units_per_block=["2", "2", "2"], **values)
    assert 1.0 < full["relative_flops"] < 1.05  # halting scores come on top


def test_imposed_units_in_tiles():
    units = in_tiles(lambda h, w: np.arange(h * w).reshape(h, w), 2)(3, 4)
    np.testing.assert_array_equal(units, [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]])


def test_layer(run):
    rows = run(layer="3x3,4,8,9x7", active=["0.5", "1"], sides=["native", "twin"])
    assert [row["side"] for row in rows] == ["dense"] + ["native"] * 2 + ["twin"] * 2
    for row in rows:
        ratio = row["seconds"] / rows[0]["seconds"]
        assert row["relative_time"] == pytest.approx(ratio, rel=0.01)
    np.testing.assert_allclose(rows[1]["relative_flops"], 32 / 63)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(image_size="224"), "--image_size: .*'224'"),
        (dict(layer="3x3,4"), "--layer: .*'3x3,4'"),
        (dict(layer="3x3,4,8,9x7", active=["2"]), "--active: .*'2'"),
        (dict(units_per_block=["x"]), "--units_per_block: .*'x'"),
        (dict(units_per_block=["9"], network="cifar", model="2"), "has 2 units; got 9"),
        (dict(sides=["native"]), "--sides: expected dense"),
        (dict(sides=["dense", "tiled"], model_type="act"), "--sides: tiled needs"),
    ],
)
def test_errors_name_the_flag(run, values, message):
    with pytest.raises(ValueError, match=message):
        run(**values)
