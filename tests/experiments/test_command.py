"""The console command, the packages beside this one, and packages that are missing."""

import pathlib
import re
import subprocess
import sys

import pytest

from experiments import command
from sact_tf import optional, siblings

ROOT = pathlib.Path(__file__).parent.parent.parent


def test_every_program_has_a_command():
    table = re.findall(r"^\| \[`([\w.]+)`\]", (ROOT / "README.md").read_text(), re.M)
    assert sorted(module for module, _ in command.COMMANDS.values()) == sorted(table)


def test_longest_command_counts():
    assert command.find(["export", "portable", "--x"]) == ("export portable", ["--x"])
    assert command.find(["export", "--x"]) == ("export", ["--x"])
    with pytest.raises(
        ValueError, match="command must be one of .*cifar.*; got nonsense"
    ):
        command.find(["nonsense"])


def test_help_and_wrong_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sact", "--help"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in command.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["sact", "detect"])
    with pytest.raises(SystemExit, match="sact: error: command must be .*; got detect"):
        command.main()


def test_runs_the_program_with_its_flags(monkeypatch):
    ran = []
    monkeypatch.setattr(
        command.runpy, "run_module", lambda name, **_: ran.append([name, *sys.argv])
    )
    monkeypatch.setattr(sys, "argv", ["sact", "detect", "run", "--images=*.png"])
    command.main()
    assert ran == [["experiments.coco_detect", "sact", "--images=*.png"]]


@pytest.mark.parametrize("name", siblings.NAMES)
def test_another_package_of_the_name_is_told(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
    # Without the package's own imports, which need TensorFlow.
    code += "import importlib.util as u\n"
    code += f"s = u.spec_from_file_location('s', {siblings.__file__!r})\n"
    code += "m = u.module_from_spec(s); s.loader.exec_module(m); m.check()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"package {name} must be the one beside" in done.stderr
    assert str(tmp_path / name) in done.stderr


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(optional.MissingPackageError, match=r"tf2onnx.*sact-tf\[onnx\]"):
        _ = optional.lazy("tf2onnx").convert
