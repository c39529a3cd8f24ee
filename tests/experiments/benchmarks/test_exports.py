"""The program that times exported networks."""

import json

import pytest
from absl.testing import flagsaver


@pytest.fixture
def run(program):
    def run(**values):
        options = dict(
            model="1_2_1_1",
            base_channels=2,
            image_size=40,
            units_per_block=["1", "1.5", "1", "1"],
            repetitions=1,
        )
        with flagsaver.flagsaver(**{**options, **values}):
            program.main()

    return run


@pytest.mark.long
def test_compares_with_the_ordinary_network(run, capsys):
    run(forms=["dense", "masked", "perforated"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["form"] for row in rows] == ["dense", "masked", "perforated"]
    assert rows[0]["relative_time"] == rows[0]["relative_flops"] == 1
    assert rows[1]["relative_flops"] == rows[2]["relative_flops"] != 1


def test_errors_name_the_flag(run):
    with pytest.raises(ValueError, match="--forms: expected dense and any of"):
        run(forms=["masked"])
    with pytest.raises(ValueError, match="--units_per_block: expected 4 numbers"):
        run(units_per_block=["1"])
