"""The report on a GPU: its checks, on the CPU's kernels; when `auto` believes it."""

import json

import pytest
import tensorflow as tf

import custom_ops
from custom_ops import build, emulation, gpu_report, gpu_support, implementation

LAYER = dict(active=0.5, milliseconds=dict(native=1.0, twin=2.0, dense=1.5, xla=1.4))


def report(**changes):
    checks = [dict(is_right=True)]
    return {"device": "A card", "checks": checks, "layers": [LAYER], **changes}


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A GPU, as far as the report can tell."""
    monkeypatch.setenv("SACT_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("SACT_GPU_AUTO", raising=False)
    monkeypatch.setattr(gpu_report, "device_name", lambda: "A card")
    monkeypatch.setattr(gpu_support, "obstacle", lambda: None)
    monkeypatch.setattr(implementation, "_has_gpu", lambda: True)
    implementation.prefers_gpu_kernels.cache_clear()
    yield
    implementation.prefers_gpu_kernels.cache_clear()


def test_checks_every_kernel():
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    rows = gpu_report.check_kernels("native", ["float32"])
    assert {row["kernel"] for row in rows} == set(gpu_report.KERNELS)
    assert {row["active"] for row in rows} == {0.0, 0.3, 1.0}
    assert all(row["is_right"] for row in rows), rows


def test_checks_find_a_wrong_kernel(monkeypatch):
    add = gpu_report._accumulate

    def wrong(normal, mask, implementation):
        (y,) = add(normal, mask, implementation)
        return [y + 1e-3 if implementation == "native" else y]

    monkeypatch.setattr(gpu_report, "KERNELS", {"accumulation": wrong})
    if custom_ops.load() is None:
        pytest.skip("the native kernels can not be compiled here")
    rows = gpu_report.check_kernels("native", ["float32"])
    assert not any(row["is_right"] for row in rows)


def test_times_layers(monkeypatch):
    monkeypatch.setattr(gpu_report, "_RUNS", 1)
    monkeypatch.setattr(gpu_report, "_SHARES", (0.5,))
    (row, *_) = gpu_report.time_layers("float32", [(1, 4, 4, 3, 3)], [1])
    assert set(row["milliseconds"]) == {"native", "twin", "dense", "xla"}
    assert min(row["milliseconds"].values()) > 0


OUT_OF_MEMORY = tf.errors.ResourceExhaustedError(None, None, "out of memory")


def test_notes_what_cannot_run(monkeypatch, capsys):
    """A kernel or a side that fails is no end of the report, and no win."""

    def fail(*_):
        raise OUT_OF_MEMORY

    monkeypatch.setattr(gpu_report, "KERNELS", {"accumulation": fail})
    monkeypatch.setattr(gpu_report, "_milliseconds", fail)
    checks = gpu_report.check_kernels("native", ["float32"])
    layers = gpu_report.time_layers("float32", [(1, 4, 4, 3, 3)], [1])
    assert [row["failure"] for row in checks] == ["out of memory"] * 3
    assert set(layers[0]["failures"]) == {"native", "twin", "dense", "xla"}
    found = dict(device="A card", tensorflow="2", networks=[])
    assert not gpu_report.is_win(found | dict(checks=[], layers=layers))
    gpu_report.print_report(found | dict(checks=checks, layers=layers))
    printed = capsys.readouterr().out
    assert "WRONG  accumulation" in printed and "out of memory" in printed
    assert "xla failed" in printed


def test_keeps_what_came_before_a_failure(card, monkeypatch, tmp_path):
    def fail():
        raise OUT_OF_MEMORY

    path = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["gpu_report", str(path)])
    monkeypatch.setattr(gpu_report, "check_kernels", lambda _: [dict(is_right=True)])
    monkeypatch.setattr(gpu_report, "time_layers", lambda _: [LAYER])
    monkeypatch.setattr(gpu_report, "time_networks", fail)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        gpu_report.main()
    kept = json.loads(path.read_text())
    assert kept["layers"] == [LAYER] * len(gpu_report.PRECISIONS)
    assert implementation.prefers_gpu_kernels()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a", "b"], "expected at most one file; got a b"),
        (["nowhere/report.json"], "a directory that exists; got nowhere/report.json"),
    ],
)
def test_refuses_wrong_arguments(card, monkeypatch, arguments, message):
    monkeypatch.setattr("sys.argv", ["gpu_report", *arguments])
    with pytest.raises(SystemExit, match=message):
        gpu_report.main()


def test_says_why_the_kernels_cannot_run(card, monkeypatch):
    monkeypatch.setattr(gpu_support, "obstacle", lambda: "there is no CUDA compiler")
    monkeypatch.setattr("sys.argv", ["gpu_report"])
    with pytest.raises(SystemExit, match=r"GPU \(A card\): there is no CUDA compiler"):
        gpu_report.main()
    gpu_report._save(report(), None)
    with pytest.warns(RuntimeWarning, match="cannot: there is no CUDA compiler"):
        assert not implementation.prefers_gpu_kernels()
    assert not implementation.prefers_gpu_kernels()  # without another warning


@pytest.mark.parametrize(
    "changes, wins",
    [
        ({}, True),
        ({"checks": [dict(is_right=True), dict(is_right=False)]}, False),
        ({"layers": []}, False),
        ({"layers": [LAYER | dict(milliseconds=dict(native=2, twin=1))]}, False),
        ({"layers": [LAYER | dict(milliseconds=dict(twin=1))]}, False),
        ({"layers": [LAYER | dict(milliseconds=dict(native=1))]}, True),
        ({"layers": [LAYER, LAYER | dict(active=1.0, milliseconds={})]}, True),
    ],
)
def test_auto_believes_a_report(card, changes, wins):
    assert not implementation.prefers_gpu_kernels()
    implementation.prefers_gpu_kernels.cache_clear()
    path = gpu_report._save(report(**changes), None)
    assert implementation.prefers_gpu_kernels() == wins
    assert json.loads(path.read_text())["device"] == "A card"


def test_auto_believes_no_report_of_other_kernels(card, monkeypatch):
    gpu_report._save(report(), None)
    monkeypatch.setattr(build, "_digest_sources", lambda digest: "others")
    assert not implementation.prefers_gpu_kernels()


def test_auto_ignores_what_is_no_report(card, tmp_path):
    gpu_report._save(report(), None).write_text("[1")
    assert not implementation.prefers_gpu_kernels()


@pytest.mark.parametrize("value, wins", [("0", False), ("1", True), ("yes", None)])
def test_the_variable_decides(card, monkeypatch, value, wins):
    gpu_report._save(report(), None)
    monkeypatch.setenv("SACT_GPU_AUTO", value)
    if wins is None:
        with pytest.raises(ValueError, match="SACT_GPU_AUTO must be 0 or 1; got 'yes'"):
            implementation.prefers_gpu_kernels()
    else:
        assert implementation.prefers_gpu_kernels() == wins


def test_positions_of_a_gpu_are_for_its_kernels_alone(monkeypatch):
    """Plain TensorFlow, and the kernels of a CPU, look for the positions again."""
    mask = tf.constant([[[True, False], [False, True]]])
    found = custom_ops.DevicePositions(mask, tf.zeros([64], tf.int64))
    x = tf.reshape(tf.range(8.0), [1, 2, 2, 2])
    for name in ("tensorflow", "native") if custom_ops.load() else ("tensorflow",):
        for given in (mask, found):
            at = custom_ops.find_positions(given, name)
            assert at.positions.numpy().tolist() == [0, 3]
        convolve = custom_ops.perforated_conv2d
        y = convolve(x, tf.ones([3, 3, 2, 1]), found, implementation=name)
        assert y.numpy().ravel().tolist() == [28.0, 0.0, 0.0, 28.0]
        weight = tf.cast(mask, tf.float32)
        y = custom_ops.masked_accumulate(x, x, weight, name, found)
        assert y.numpy().ravel().tolist() == [0, 2, 2, 3, 4, 5, 12, 14]


def test_without_a_gpu_runs_the_emulation(monkeypatch, capsys):
    if gpu_report.device_name() is not None:
        pytest.skip("there is a GPU")
    runs = []
    monkeypatch.setattr("sys.argv", ["gpu_report"])
    monkeypatch.setattr(emulation, "main", lambda: runs.append(True))
    gpu_report.main()
    assert runs and "There is no GPU" in capsys.readouterr().out
