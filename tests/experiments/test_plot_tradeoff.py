"""Accuracy over operations."""

import json

import matplotlib.image
import pytest
from absl.testing import flagsaver


@pytest.fixture
def run(program, tmp_path):
    def run(*curves, output_file="plot.png"):
        with flagsaver.flagsaver(
            curve=list(curves), output_file=str(tmp_path / output_file)
        ):
            program.main()

    return run


def write(path, accuracy, flops):
    results = {
        "eval/Accuracy": accuracy,
        "Total Flops/mean": flops,
        "Total Flops/std": flops / 10,
    }
    path.write_text(json.dumps(results))


def test_plots_lines(run, tmp_path, capsys):
    for k in range(3):
        write(tmp_path / f"a{k}.json", 0.5 + k / 10, 1e8 * (3 - k))
    write(tmp_path / "b.json", 0.7, 2e8)
    run(f"ResNet={tmp_path}/a*.json", f"SACT={tmp_path}/b.json")
    picture = matplotlib.image.imread(tmp_path / "plot.png")
    assert picture.shape[0] > 300 and picture.std() > 0.05
    assert "4 evaluations" in capsys.readouterr().out
    run(f"ResNet={tmp_path}/a*.json", output_file="out/plot.svg")
    assert "ResNet" in (tmp_path / "out" / "plot.svg").read_text()


def test_errors_name_the_flag(run, tmp_path):
    with pytest.raises(ValueError, match="--curve: must be given"):
        run()
    with pytest.raises(ValueError, match="--curve=x: must be LABEL=PATTERN"):
        run("x")
    with pytest.raises(FileNotFoundError, match="--curve=a=/x: matches no file"):
        run("a=/x")
    (tmp_path / "c.json").write_text('{"eval/Accuracy": 0.5}')
    with pytest.raises(ValueError, match="c.json is no evaluation"):
        run(f"a={tmp_path}/c.json")
    write(tmp_path / "d.json", 0.5, 1e8)
    with pytest.raises(ValueError, match="--output_file=.*must end in one of .png"):
        run(f"a={tmp_path}/d.json", output_file="plot.txt")


@pytest.mark.parametrize(
    "content, message",
    [
        ("[", "is no JSON file"),
        ("[" * 100000, "nested too deeply"),
        ("null", "it is null, which has no 'Total Flops/mean'"),
        ('{"Total Flops/mean": NaN}', "has Total Flops/mean nan; expected a finite"),
        ('{"Total Flops/mean": "1e8"}', "has Total Flops/mean '1e8'"),
        ('{"Total Flops/mean": 1, "eval/Accuracy": [1]}', r"has eval/Accuracy \[1\]"),
        ('{"Total Flops/mean": 1, "eval/Accuracy": 1e400}', "has eval/Accuracy inf"),
        ("\xff", "is no JSON file"),
    ],
)
def test_curves_of_other_things(run, tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(
        ValueError, match=rf"--curve=a=.*c\.json is no .*{message}"
    ) as e:
        run(f"a={path}")
    assert "\n" not in str(e.value) and not (tmp_path / "plot.png").exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="cannot be read .Is a directory"):
        run(f"a={path}")
