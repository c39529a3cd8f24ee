"""The program that times training's input."""

import json

import pytest


@pytest.mark.long
def test_reports_the_share(run_imagenet, capsys):
    run_imagenet(steps=1, repetitions=1)
    results = json.loads(capsys.readouterr().out)
    assert 0 <= results["input_bound_share"] < 1
    seconds = results["seconds_per_batch"]
    assert set(seconds) == {"step", "step_and_input", "input"}
    share = max(1 - seconds["step"] / seconds["step_and_input"], 0)
    assert results["input_bound_share"] == pytest.approx(share, abs=1e-9)


def test_too_large_a_batch_is_named(run_imagenet):
    with pytest.raises(ValueError, match="--batch_size=99: is larger than the 12"):
        run_imagenet(batch_size=99)
