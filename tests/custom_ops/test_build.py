"""Compiling: no compiler, a broken one, nowhere to write, many processes at once."""

import os
import stat
import subprocess
import sys

import pytest

import custom_ops
from custom_ops import build

RUN = """
import warnings; warnings.simplefilter("always")
import numpy as np, custom_ops
x, f = np.ones([1, 3, 3, 2], np.float32), np.ones([3, 3, 2, 1], np.float32)
for _ in range(2):
    y = custom_ops.perforated_conv2d(x, f, np.eye(3) > 0)
print(float(y[0, 1, 1, 0]), custom_ops.load() is not None)
"""


def run(**environment):
    """Runs a perforated convolution in a new process; returns its output and errors."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def broken_compiler(directory):
    path = directory / "broken"
    path.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit\necho error: out of order >&2\nexit 1\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_falls_back_with_one_warning(tmp_path):
    compiler = broken_compiler(tmp_path)
    out, err = run(CXX=str(compiler), SACT_CACHE_DIR=str(tmp_path / "cache"))
    assert out.split() == ["18.0", "False"]
    assert err.count("RuntimeWarning") == 1
    assert "error: out of order" in err


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(custom_ops.BuildError, match="no C\\+\\+ compiler"):
        build.build()


def test_a_compiler_that_is_not_there(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(custom_ops.BuildError, match="/nowhere/c\\+\\+ can not be run"):
        build.build()


def test_nowhere_to_write(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SACT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(build, "_key", lambda: "key")
    with pytest.raises(custom_ops.BuildError, match="set SACT_CACHE_DIR"):
        build.build()


def test_another_place_where_the_first_can_not_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("SACT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(build, "_key", lambda: "key")
    monkeypatch.setattr(build, "_compile", lambda output: output.write_text("library"))
    path = build.build()
    assert path.parent.parent == tmp_path and path.read_text() == "library"


def test_another_tensorflow_is_another_library(monkeypatch):
    key = build._key()
    assert key == build._key()
    monkeypatch.setattr(build.tf, "__version__", "2.99.0")
    assert key != build._key()


def test_processes_that_start_at_once_compile_once(tmp_path):
    """A compiler that writes down its runs, and takes its time."""
    compiler = tmp_path / "slow"
    compiler.write_text(
        "#!/bin/sh\n"
        "[ $1 = --version ] && exit\n"
        f"echo run >> {tmp_path}/runs\n"
        "sleep 1\n"
        'while [ "$1" != -o ]; do shift; done\n'
        'echo library > "$2"\n'
    )
    compiler.chmod(0o755)
    code = "from custom_ops import build; print(open(build.build()).read())"
    environment = {
        **os.environ,
        "CXX": str(compiler),
        "SACT_CACHE_DIR": str(tmp_path / "cache"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    assert [p.communicate()[0].split() for p in processes] == [[b"library"]] * 3
    assert (tmp_path / "runs").read_text() == "run\n"
