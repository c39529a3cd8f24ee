"""Recipes: files of flags that their programs take."""

import importlib
import pathlib
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.common import numbers, recipes, run_record
from experiments.common.zoo_plans import PLANS
from sact_tf.data.examples import DataError

PATHS = sorted(pathlib.Path(recipes.DIRECTORY).glob("*.flags"))


@pytest.fixture
def define():
    """Returns a function that defines a program's flags for the time of a test."""
    before = set(flags.FLAGS)
    modules = []

    def define(program):
        name = f"experiments.{program}"
        modules.append(name)
        return importlib.import_module(name)

    yield define
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    for name in modules:
        sys.modules.pop(name, None)


def test_every_planned_network_has_a_recipe():
    assert set(PLANS) <= {path.stem for path in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_program_takes_it(define, path):
    program, given = recipes.read(str(path))
    module = define(program)
    with flagsaver.flagsaver():
        flags.FLAGS([program, f"--flagfile={path}"])
        numbers.check()
        # As runs record them, so that they can be compared.
        assert sorted(run_record.given_flags()) == sorted(given)
        assert run_record.trains()
        assert flags.FLAGS.train_log_dir == f"runs/{path.stem}"
        if hasattr(module, "learning_rate"):
            module.learning_rate()
    assert f"--flagfile=experiments/recipes/{path.name}" in path.read_text()


def test_starts_are_recipes_too():
    for path in PATHS:
        named = dict(
            line.removeprefix("--").partition("=")[::2]
            for line in recipes.read(str(path))[1]
        )
        start = named.get("finetune_path")
        if start is not None:
            assert recipes.path_of(start.removeprefix("runs/")) in map(str, PATHS)


def test_what_is_not_what_was_run(tmp_path):
    path = tmp_path / "x.flags"
    path.write_text(
        "# python -m experiments.cifar_main\n--tau=0.1\n\n--seed=1\n--dataset_dir=D\n"
    )
    recipes.check(str(path), "cifar_main", ["--seed=1", "--tau=0.1", "--eval_dir=/x"])
    with pytest.raises(DataError, match="is of cifar_main; the run was made by x"):
        recipes.check(str(path), "x", [])
    with pytest.raises(
        DataError, match="--tau=0.1 where the run had --tau=0.2; nothing .* had --z"
    ):
        recipes.check(str(path), "cifar_main", ["--seed=1", "--tau=0.2", "--z"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("--tau=1\n", "no comment has python -m"),
        ("# python -m experiments.x\ntau\n", "has 'tau'; expected --flag=value"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, text, message):
    path = tmp_path / "x.flags"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        recipes.read(str(path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        recipes.read(str(tmp_path / "none"))
