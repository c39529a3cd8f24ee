"""The plot of the three modes: what it shows, and bad files."""

import json

from absl.testing import flagsaver

from sact_tf.halting.probabilistic import MODES


def write(directory, step):
    directory.mkdir()
    row = {"global_step": step, "relaxed/Expected Flops": 5e7}
    for number, mode in enumerate(MODES):
        for key, value in (("Log Loss", 1.0), ("Accuracy", 0.5), ("Flops", 1e8)):
            row[f"{mode}/{key}"] = value + 0.1 * number - step / 1000
    (directory / "eval.json").write_text(json.dumps(row))
    return row


def test_draws_all_modes_by_step(program, tmp_path, capsys):
    rows = [write(tmp_path / f"eval_{step}", step) for step in (20, 100, 3)]
    pattern = str(tmp_path / "eval_*" / "eval.json")
    with flagsaver.flagsaver(
        evaluations=pattern, output_file=str(tmp_path / "modes.svg")
    ):
        program.main()
        figure = program.modes_figure(program.read())
    assert "3 evaluations" in capsys.readouterr().out
    assert (tmp_path / "modes.svg").stat().st_size > 1000
    losses, _, operations = figure.axes
    lines = {line.get_label(): line for line in losses.get_lines()}
    assert set(lines) == set(MODES)
    assert list(lines["discrete"].get_xdata()) == [3, 20, 100]
    expected = [rows[k]["discrete/Log Loss"] for k in (2, 0, 1)]
    assert list(lines["discrete"].get_ydata()) == expected
    assert list(operations.get_lines()[0].get_ydata()) == [5e7] * 3


def test_bad_files_are_named(refusal, tmp_path):
    output = str(tmp_path / "modes.png")
    bad = tmp_path / "eval.json"
    bad.write_text(json.dumps({"global_step": 3}))
    message = refusal(evaluations=str(bad), output_file=output)
    assert "is no evaluation of a PACT network" in message and "relaxed" in message
    missing = str(tmp_path / "none*")
    assert "matches no file" in refusal(evaluations=missing, output_file=output)
    message = refusal(evaluations=str(bad), output_file="modes.txt")
    assert message.startswith("--output_file=")
