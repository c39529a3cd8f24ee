"""What the machine can do at most."""

import shutil
import subprocess
import sys

import pytest

from custom_ops import build, peak


@pytest.fixture(autouse=True)
def _compiler():
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")


def test_speeds_are_of_this_machine():
    speeds = peak.measure(1, 0.01)
    assert set(speeds) <= set(peak.KINDS)
    # Between a core without vectors and more than any core of today.
    assert 1e8 < speeds["float32"] < 1e12
    line = peak.describe(1, speeds)
    assert line.startswith(f"{peak.processor()}, 1 thread: float32 ")
    assert peak.processor() and peak.num_processors() >= 1


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match="threads must be at least 1; got 0"):
        peak.measure(0)


@pytest.mark.parametrize("argument", ["0", "x"])
def test_program_ends_with_one_line(argument, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peak", argument])
    with pytest.raises(SystemExit, match=r"^custom_ops\.peak: .*" + argument):
        peak.main()


def test_library_is_compiled_once(monkeypatch):
    peak.measure(1, 0.01)
    peak._library.cache_clear()

    def refuse(command, *others, **options):
        assert "peak.cc" not in " ".join(command)
        return subprocess.run(command, capture_output=True, text=True).stdout

    monkeypatch.setattr(build, "_run", refuse)
    peak.measure(1, 0.01)
