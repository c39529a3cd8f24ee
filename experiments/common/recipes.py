"""Recipes: one file of flags for each result, read by `--flagfile`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from sact_tf.data.examples import DataError

DIRECTORY = os.path.join(
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "recipes"
)
SUFFIX = ".flags"

# Where things lie, and how often is written: no part of what a network is.
_ELSEWHERE = frozenset(
    "annotations checkpoint_dir dataset_dir eval_dir finetune_path images "
    "save_interval_secs save_summaries_secs train_log_dir units_from".split()
)


def path_of(name: str) -> str:
    """Returns the file of a recipe."""
    return os.path.join(DIRECTORY, name + SUFFIX)


def read(path: str) -> tuple[str, list[str]]:
    """Reads a recipe.

    Args:
        path: Its first comment that has "python -m experiments.NAME" in it names the
            program; other comments begin with #, too.

    Returns:
        The name of the program, and the flags, `--name=value`.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It names no program, or a line is no flag.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: does not exist")
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    comments = " ".join(line for line in lines if line.startswith("#"))
    program = re.search(r"python -m experiments\.([\w.]+)", comments)
    if program is None:
        raise DataError(f"{path}: no comment has python -m experiments.NAME")
    given = [line for line in lines if line and not line.startswith("#")]
    for line in given:
        if not line.startswith("--"):
            raise DataError(f"{path}: has {line!r}; expected --flag=value")
    return program[1], given


def meaning(given: Iterable[str]) -> dict[str, str]:
    """Returns flags by their names, without those that only say where things lie."""
    named = {}
    for flag in given:
        name = flag.removeprefix("--").partition("=")[0]
        named[name] = flag
    return {name: flag for name, flag in named.items() if name not in _ELSEWHERE}


def check(path: str, program: str, given: Iterable[str]) -> None:
    """Raises DataError unless a recipe is what a run was started with.

    Args:
        path: Of the recipe.
        program: That trained.
        given: Its flags that differed from their defaults.
    """
    named, wanted = read(path)
    if named != program:
        raise DataError(f"{path}: is of {named}; the run was made by {program}")
    recipe, run = meaning(wanted), meaning(given)
    wrong = [
        f"{recipe.get(name, 'nothing')} where the run had {run.get(name, 'nothing')}"
        for name in sorted({*recipe, *run})
        if recipe.get(name) != run.get(name)
    ]
    if wrong:
        raise DataError(
            f"{path}: is not what the run was started with: it has {'; '.join(wrong)}. "
            "Write into it what was run, and no flag that has its default"
        )
