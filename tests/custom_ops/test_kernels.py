"""The CPU kernels by themselves, in the stand-alone program beside them."""

import pathlib
import shutil
import subprocess

import pytest

KERNELS = pathlib.Path(__file__).parents[2] / "custom_ops" / "kernels"


@pytest.mark.parametrize(
    "sanitizers, cases",
    [
        ("", 100),
        pytest.param("address,undefined", 300, marks=pytest.mark.long),
        pytest.param("thread", 300, marks=pytest.mark.long),
    ],
)
def test_equal_plain_loops(tmp_path, sanitizers, cases):
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    command = [compiler, "-std=c++17", "-O1", "-march=native", "-pthread"]
    command += [f"-fsanitize={sanitizers}"] if sanitizers else []
    program = tmp_path / "check"
    source = str(KERNELS / "cpu_check.cc")
    subprocess.run([*command, source, "-o", str(program)], check=True)
    done = subprocess.run(
        [str(program), str(cases)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{cases} cases are right\n"
