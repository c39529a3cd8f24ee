"""Locks of training directories, and signals that stop training."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

import sact_tf
from sact_tf import run_control

ROOT = pathlib.Path(__file__).parents[2]
_HOLD = """
import sys
from sact_tf import run_control
with run_control.locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""
_TRAIN = """
import sys
import sact_tf
from sact_tf import training
from sact_tf.data import shapes

examples = shapes.load("train", 16, 64, 0)
model = sact_tf.cifar_resnet("1", "sact", examples.num_classes, 4)
training.train(
    model, examples, sys.argv[1], None, 8, 0.01, verbose=0,
    save_interval_secs=0, save_summaries_secs=1000,
)
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_directory_is_locked_until_its_process_dies(tmp_path):
    holder = start(_HOLD, tmp_path / "run")
    assert holder.stdout.readline() == "locked\n"
    message = f"process {holder.pid} on .*trains there"
    with pytest.raises(run_control.DirectoryInUseError, match=message):
        with run_control.locked(tmp_path / "run"):
            pass
    with run_control.locked(tmp_path / "other"):  # as may be
        pass
    holder.kill()
    holder.wait()
    with run_control.locked(tmp_path / "run"):
        assert (
            f"process {os.getpid()} " in (tmp_path / "run/.training_lock").read_text()
        )
    assert (tmp_path / "run/.training_lock").read_text() == ""


def test_signals_are_noted_once():
    before = signal.getsignal(signal.SIGTERM)
    with run_control.Interruption() as interruption:
        assert interruption.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal is signal.SIGTERM and interruption.exit_code == 143
        assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt), run_control.Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.exit_code == 130
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "number, code",
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
    ],
)
def test_a_training_that_is_stopped_saves(tmp_path, number, code):
    process = start(_TRAIN, tmp_path)
    while not list(tmp_path.glob("*.index")):
        assert process.poll() is None
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code
    step = sact_tf.checkpoint_step(tmp_path)
    (line,) = [text for text in output.splitlines() if "Stopped" in text]
    assert line.startswith(f"Stopped by {number.name} at step {step}; start again")
