"""Errors of the library are told with the flag they are about."""

import errno

import pytest
from absl import flags

from experiments.common import refusals
from sact_tf.checkpoint_kinds import CLASSIFIER, DETECTOR, CheckpointKindError
from sact_tf.writing import WritingError


@pytest.fixture
def defined(monkeypatch, tmp_path):
    """Flags of a program, none of which any program has."""
    values = flags.FlagValues()
    for name, value in dict(
        tau="0.5", data_dir=str(tmp_path / "data"), output="5", units="nan"
    ).items():
        flags.DEFINE_string(name, value, "", flag_values=values)
    for name in ("size", "min_scale"):
        flags.DEFINE_integer(name, None, "", flag_values=values)
    flags.DEFINE_list("files", [f"{tmp_path}/data/a", "b"], "", flag_values=values)
    values(["program"])
    monkeypatch.setattr(refusals, "FLAGS", values)
    return tmp_path


def test_what_names_a_flag_stays(defined):
    assert refusals.explain(ValueError("--x=3: bad")) == "--x=3: bad"
    assert refusals.explain(ValueError("something else")) == "something else"
    assert refusals.explain(ValueError("number 5 is no path")) == "number 5 is no path"


def test_arguments(defined):
    error = ValueError("tau must be >= 0; got -1")
    assert refusals.explain(error) == "--tau=0.5: tau must be >= 0; got -1"
    assert refusals.explain(ValueError("taupe is no flag")) == "taupe is no flag"


@pytest.mark.parametrize(
    "message, value",
    [
        ("size must be at most 6 x 6 pixels; got 8", "8"),
        ("size must be so; got 1 at 2 scales, 2 pixels", "1"),
        ("size must be so; got 0.5", "0.5"),
        ("size must be one of a, b; got 'c d'", "'c d'"),
        ("size 128 is larger than the 40 examples", "128"),
        ("size must be given", "(default)"),
        ("size must be so; got a network", "(default)"),
    ],
)
def test_flags_that_were_not_given_show_what_was_taken(defined, message, value):
    assert refusals.explain(ValueError(message)) == f"--size={value}: {message}"


def test_arguments_that_are_flags_of_other_names(defined):
    """Unless there is a flag of the argument's own name."""
    error = ValueError("scales must be two; got 3")
    assert refusals.explain(error) == "--min_scale=3: scales must be two; got 3"
    flags.DEFINE_integer("scales", 5, "", flag_values=refusals.FLAGS)
    assert refusals.explain(error) == "--scales=5: scales must be two; got 3"


def test_paths(defined):
    data = f"{defined}/data"
    for message in (f"{data}: bad", f"no image in {data}/x.png", f"'{data}' is bad"):
        assert refusals.explain(ValueError(message)) == f"--data_dir={data}: {message}"
    # The longest of several; and no longer name that begins alike.
    message = refusals.explain(ValueError(f"{data}/a/b.png: bad"))
    assert message == f"--files={data}/a,b: {data}/a/b.png: bad"
    assert refusals.explain(ValueError(f"{data}2: bad")) == f"{data}2: bad"


def test_errors_of_the_system(defined):
    error = IsADirectoryError(errno.EISDIR, "Is a directory", f"{defined}/data/x")
    assert refusals.explain(error) == (
        f"--data_dir={defined}/data: {defined}/data/x: Is a directory"
    )
    error = WritingError(f"{defined}/data/x", "No space left on device")
    assert refusals.explain(error) == (
        f"--data_dir={defined}/data: {defined}/data/x: cannot be written (No space "
        "left on device)"
    )


def test_checkpoints_of_another_kind(defined):
    """The line tells which programs take them; also where a program names the flag."""
    path = f"{defined}/data/model.ckpt-7"
    error = CheckpointKindError(path, DETECTOR, CLASSIFIER)
    taken = refusals.explain(error).partition("; ")
    assert taken[0] == f"--data_dir={defined}/data: {error}"
    assert taken[2].startswith("coco_eval, coco_detect and coco_export take it")
    named = ValueError(f"--input={path}: cannot be loaded: {error}")
    named.__cause__ = error
    assert refusals.explain(named) == f"{named}; {taken[2]}"
    other = refusals.explain(CheckpointKindError(path, CLASSIFIER, DETECTOR))
    assert "export_saved_model take it" in other and "\n" not in other


def test_links(defined):
    """A message may name what a link leads to."""
    (defined / "real").mkdir()
    (defined / "data").symlink_to(defined / "real")
    message = refusals.explain(ValueError(f"{defined}/real/x: bad"))
    assert message == f"--data_dir={defined}/data: {defined}/real/x: bad"
