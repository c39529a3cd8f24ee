"""The list of trained networks, their cards, and the page of all of them."""

import pathlib
import sys

import pytest
from absl.testing import flagsaver

import sact_tf
from sact_tf import zoo
from sact_tf.zoo import cards, loading

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "zoo.md"


def test_the_page_says_what_the_files_say(program):
    assert PAGE.read_text() == cards.page(program.all_cards()), (
        "run python -m experiments.models --write_cards=docs/zoo.md"
    )


def test_it_lists_the_networks(program, capsys):
    program.main()
    output = capsys.readouterr().out
    for name in sact_tf.list_networks():
        card = zoo.card(name)
        (line,) = [line for line in output.splitlines() if line.split()[0] == name]
        assert card.result in line and card.kilobytes in line
        program.main(name)
        assert f"## {name}" in capsys.readouterr().out


def test_an_empty_zoo(program, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "DIRECTORY", str(tmp_path))
    program.main()
    assert capsys.readouterr().out.startswith("No trained network")
    with pytest.raises(ValueError, match="none in this installation; got 'x'"):
        program.main("x")
    with flagsaver.flagsaver(write_cards=str(tmp_path / "zoo.md")):
        program.main()
    assert "No network has been packed yet" in (tmp_path / "zoo.md").read_text()


def test_one_word_and_no_more(program, monkeypatch):
    from experiments.common import programs

    ran = []
    monkeypatch.setattr(programs, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(programs, "parse_flags", lambda argv: argv)
    for words, result in ((["a"], [["a"]]), ([], [["a"], []])):
        monkeypatch.setattr(sys, "argv", ["models", *words])
        with pytest.raises(SystemExit):
            programs.run(lambda *given: ran.append(list(given)), max_arguments=1)
        assert ran == result
    monkeypatch.setattr(sys, "argv", ["models", "a", "b"])
    with pytest.raises(SystemExit) as stop:
        programs.run(lambda *given: ran.append(list(given)), max_arguments=1)
    assert stop.value.code == 1 and len(ran) == 2
