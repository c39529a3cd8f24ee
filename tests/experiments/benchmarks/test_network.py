"""The benchmark program on small networks and layers."""

import json
import subprocess

import numpy as np
import pytest
from absl.testing import flagsaver

from custom_ops import build, gpu_report, peak
from experiments.benchmarks.tools import imposed_units, in_tiles
from sact_tf.optional import MissingPackageError


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


def test_report_on_a_gpu_runs_it_with_flags_that_there_are(program, monkeypatch):
    """`custom_ops.gpu_report` does, on machines that have a GPU."""
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, '{"side": "dense"}\n', "")

    monkeypatch.setattr(subprocess, "run", run)
    rows = gpu_report.time_networks()
    assert [(row["image"], row["batch"], row["precision"]) for row in rows] == [
        (image, batch, precision)
        for precision in ("float32", "tf32", "bfloat16")
        for image, batch in [("600x1000", b) for b in (1, 8)]
        + [("224x224", b) for b in (1, 8, 64)]
    ]
    for _, _, name, *arguments in commands:
        assert name == program.__name__
        with flagsaver.flagsaver():
            for argument in arguments:
                flag, _, value = argument.removeprefix("--").partition("=")
                program.FLAGS[flag].parse(value or "true")
            assert program.FLAGS.json
            assert program.FLAGS.sides == ["dense", "xla", "native", "twin"]
            assert set(program.FLAGS.sides) <= set(program.SIDES)


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


_TINY = dict(network="cifar", model="1", image_size="8x8")


def test_shares_of_the_peak(run, monkeypatch):
    monkeypatch.setattr(peak, "measure", lambda threads: {"float32": 2e9})
    (row,) = run(**_TINY, units_per_block=["1"], sides=["dense"])
    assert row["threads"] >= 1 and row["processor"] == peak.processor()
    speed = row["gflops_per_second"]
    assert row["share_of_peak"] == pytest.approx(speed / 2)
    # 8x8 positions: stem of 3 to 16 channels, two convolutions of 16 channels.
    flops = 2 * 64 * 9 * (16 * 16 * 2)
    assert speed == pytest.approx(flops / row["seconds"] / 1e9)


def test_without_compiler_there_are_no_shares(run, monkeypatch, capsys):
    def fail(threads):
        raise build.BuildError("there is no C++ compiler")

    monkeypatch.setattr(peak, "measure", fail)
    (row,) = run(**_TINY, units_per_block=["1"], sides=["dense"])
    assert "share_of_peak" not in row


def test_blocks_by_themselves(run):
    values = dict(units_per_block=["1", "1"], sides=["dense", "native"])
    rows = run(**_TINY, **values, by_block=True)
    found = [(row["block"], row["side"]) for row in rows]
    assert found == [(f"block_{b}", s) for b in (1, 2) for s in ("dense", "native")]
    assert all(row["relative_flops"] == 1 for row in rows)  # one unit, which all run


def test_sides_that_cannot_run_are_left_out(program, monkeypatch, capsys):
    def load(name):
        raise MissingPackageError(f"this needs the package {name}")

    monkeypatch.setattr("sact_tf.optional.load", load)
    values = dict(**_TINY, units_per_block=["1"], sides=["dense", "openvino"])
    with flagsaver.flagsaver(json=True, repetitions=1, **values):
        program.main()
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1
    assert "--sides: openvino is left out: this needs the package" in output.err


def test_openvino_computes_the_same(program):
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    with flagsaver.flagsaver(**_TINY, units_per_block=["1", "1"]):
        dense, other = (program.make_side(side) for side in ("dense", "openvino"))
    assert dense.flops() == other.flops()
    np.testing.assert_allclose(other.run(), dense.run(), rtol=1e-4, atol=1e-5)
