"""The comparison of two networks: the interval, and bad files."""

import json

import numpy as np
import pytest
from absl.testing import flagsaver


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes an images.npz."""

    def write(name, **values):
        path = str(tmp_path / name)
        np.savez(path, **{key.replace("__", "/"): v for key, v in values.items()})
        return path

    return write


def test_compares_two_networks(program, write, tmp_path, capsys):
    rng = np.random.default_rng(0)
    right = (rng.random(2000) < 0.8).astype(np.float32)
    better = np.maximum(right, rng.random(2000) < 0.1).astype(np.float32)
    flops = np.full(2000, 1e8, np.float32)
    first = write(
        "first.npz",
        **{
            "relaxed/Accuracy": better,
            "relaxed/Flops": flops,
            "relaxed/Expected Flops": flops / 2,
            "thresholded/Accuracy": right,
            "thresholded/Flops": flops,
        },
    )
    second = write("second.npz", **{"network/Accuracy": right, "network/Flops": flops})
    output = tmp_path / "result.json"
    with flagsaver.flagsaver(
        first=first, first_mode="relaxed", second=second, output_file=str(output)
    ):
        program.main()
    results = json.loads(output.read_text())
    difference = float(better.mean() - right.mean())
    np.testing.assert_allclose(results["difference"], difference, atol=1e-6)
    np.testing.assert_allclose(results["first/flops"], 5e7)
    # The interval of a mean of 2000 independent differences.
    spread = 1.96 * (better - right).std() / np.sqrt(2000)
    np.testing.assert_allclose(results["low"], difference - spread, atol=0.2 * spread)
    np.testing.assert_allclose(results["high"], difference + spread, atol=0.2 * spread)
    assert "difference" in capsys.readouterr().out


def test_compares_with_a_line(program, write, tmp_path):
    rng = np.random.default_rng(0)
    right = {k: (rng.random(500) < k).astype(np.float32) for k in (0.5, 0.7, 0.9)}
    low, middle, high = (
        write(f"{k}.npz", **{"network/Accuracy": v, "network/Flops": np.ones(500)})
        for k, v in right.items()
    )
    output = tmp_path / "result.json"
    flags = dict(first=middle, second=low, third=high, share=0.25)
    with flagsaver.flagsaver(output_file=str(output), **flags):
        program.main()
    results = json.loads(output.read_text())
    line = 0.25 * right[0.5].mean() + 0.75 * right[0.9].mean()
    np.testing.assert_allclose(results["line/accuracy"], line, rtol=1e-6)
    difference = right[0.7].mean() - line
    np.testing.assert_allclose(results["difference"], difference, atol=1e-6)
    assert results["low"] < difference < results["high"] < 0


def test_bad_files_are_named(refusal, write, tmp_path):
    good = write("good.npz", **{"network/Accuracy": np.ones(3)})
    (tmp_path / "bad.npz").write_text("no such file")
    bad = str(tmp_path / "bad.npz")
    assert "--first" in refusal(first="", second=good)
    assert f"--first={bad}: is no images.npz" in refusal(first=bad, second=good)
    message = refusal(first=good, second=good, first_mode="soft")
    assert message.startswith("--first_mode=soft:") and "has network" in message
    other = write("other.npz", **{"network/Accuracy": np.ones(4)})
    assert "which are 3; got 4" in refusal(first=good, second=other)
    message = refusal(first=good, second=good, third=other)
    assert message.startswith(f"--third={other}: must have the images of --first")
    missing = str(tmp_path / "none.npz")
    assert missing in refusal(first=missing, second=good)
    assert "--confidence" in refusal(first=good, second=good, confidence=1.0)
