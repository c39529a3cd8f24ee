"""What moved in experiments/ still answers to its old names."""

import json
import os
import subprocess
import sys

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
HELPERS = {
    "benchmark_tools": "benchmarks.tools",
    "detection": "common.detection",
    "distribution": "common.distribution",
    "evaluating": "common.evaluating",
    "imagenet": "common.imagenet",
    "programs": "common.programs",
}
PROGRAMS = {
    "benchmark": "benchmarks.network",
    "benchmark_detection": "benchmarks.detection",
    "benchmark_exports": "benchmarks.exports",
    "benchmark_input": "benchmarks.input",
    "benchmark_training_step": "benchmarks.training_step",
}

# Programs define flags of the same names: each is forgotten before the next one.
_SCRIPT = """
import contextlib, importlib, io, json, os, runpy, sys
from absl import app, flags
import experiments.common.moved

app.define_help_flags()
before = set(flags.FLAGS)

def forget():
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    for name in [name for name in sys.modules if name.startswith("experiments.")]:
        parent, _, child = name.rpartition(".")
        if hasattr(sys.modules[name], "main"):
            del sys.modules[name]
            delattr(sys.modules[parent], child)

def is_moved(old, new):
    module = importlib.import_module(f"experiments.{old}")
    is_same = module is importlib.import_module(f"experiments.{new}")
    is_same = is_same and getattr(sys.modules["experiments"], old) is module
    forget()
    return is_same

def help_of(name):
    sys.argv = ["", "--help"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)
    forget()
    path = os.path.join("experiments", *name.split(".")) + ".py"
    return output.getvalue().replace(os.path.abspath(path), "PROGRAM")

helpers, programs = json.load(sys.stdin)
moved = {old: is_moved(old, new) for old, new in {**helpers, **programs}.items()}
help = {old: [help_of(old), help_of(new)] for old, new in programs.items()}
print(json.dumps([moved, help]))
"""


def test_old_imports_and_commands():
    process = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps([HELPERS, PROGRAMS]),
        cwd=_ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    moved, help_texts = json.loads(process.stdout)
    assert moved == dict.fromkeys([*HELPERS, *PROGRAMS], True)
    for old, (old_help, new_help) in help_texts.items():
        assert old_help == new_help, old
        assert f"python -m experiments.{PROGRAMS[old]}" in new_help
        assert "PROGRAM:\n  --" in new_help  # flags are the program's own
        assert "--repetitions: " in new_help
