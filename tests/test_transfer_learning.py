"""The walk through transfer learning in docs/ works from end to end."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.long
def test_runs_as_it_stands(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "transfer_learning.py")],
        env={
            **os.environ,
            "STEPS": "4",
            "OUTPUT": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "sact     accuracy" in done.stdout and "% of all operations" in done.stdout
    assert (tmp_path / "ponder.png").stat().st_size > 1000
    assert "ponder_cost_map" in done.stdout.splitlines()[-1]
