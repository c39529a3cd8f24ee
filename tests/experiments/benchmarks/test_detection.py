"""The detection benchmark on small networks."""

import json

import pytest
from absl.testing import flagsaver


@pytest.fixture
def run(program, capsys):
    """Returns a function that runs the program and reads its JSON lines."""

    def run(**values):
        defaults = dict(
            model="2_2_2_1",
            base_channels=16,
            image_size="64x80",
            units_per_block=["1.5", "1", "2"],
            crop_size=7,
            num_region_samples=4,
            repetitions=1,
            json=True,
        )
        with flagsaver.flagsaver(**{**defaults, **values}):
            program.main()
        lines = capsys.readouterr().out.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    return run


@pytest.mark.long
def test_inference(run):
    rows = run()
    sides = [(row["side"], row["what"]) for row in rows]
    assert len(set(sides)) == 4 and sides[0] == ("vanilla", "detector")
    assert rows[0]["relative_flops"] == 1 and 0.5 < rows[2]["relative_flops"] < 0.95
    vanilla = {r["what"]: r["seconds"] for r in rows if r["side"] == "vanilla"}
    for row in rows:
        ratio = row["seconds"] / vanilla[row["what"]]
        assert row["relative_time"] == pytest.approx(ratio, rel=0.01)


@pytest.mark.long  # four gradients are traced
def test_training(run):
    values = dict(model="1_1_1_1", base_channels=8, units_per_block=["1", "1", "1"])
    rows = run(training=True, batch_size=2, **values)
    assert {row["what"] for row in rows} == {"step", "network"}
    assert [r["relative_time"] for r in rows if r["what"] == "network"] == [1, 1]


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(image_size="64"), "--image_size: .*'64'"),
        (dict(units_per_block=["9"]), "--units_per_block: block1 has 2 units; got 9"),
    ],
)
def test_errors_name_the_flag(run, values, message):
    with pytest.raises(ValueError, match=message):
        run(**values)
