"""Tables and figures of evaluations."""

import json

import matplotlib.image
import pytest
from absl.testing import flagsaver

import sact_tf
from experiments.common import evaluating

FLOPS = {"vanilla": 1e10, "sact": 7e9}


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes an eval.json as the programs do."""

    def write(name, **entries):
        path = tmp_path / "runs" / name / "eval.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))
        return path

    return write


@pytest.fixture
def run(program, tmp_path, capsys):
    """Returns a function that reports on all files; returns the page and output."""

    def run():
        with flagsaver.flagsaver(
            evaluations=[str(tmp_path / "runs" / "*" / "eval.json")],
            output_dir=str(tmp_path / "report"),
        ):
            program.main()
        page = (tmp_path / "report" / "report.md").read_text()
        return page, capsys.readouterr().out

    return run


def classification(model="3_4_23_3", model_type="vanilla", size=224, **others):
    flops = FLOPS[model_type] * (size / 224) ** 2
    return {
        "program": "imagenet_eval",
        "version": 1,
        "dataset": "tfrecord",
        "checkpoint": f"/runs/{model_type}/model.ckpt-9",
        "global_step": 9,
        "model": model,
        "model_type": model_type,
        "tau": 0.005,
        "image_size": size,
        "eval/Accuracy": 0.7512,
        "eval/Recall@5": 0.9276,
        "Total Flops/mean": flops,
        "Total Flops/std": flops / 20,
        **others,
    }


def detection(**others):
    return {
        **classification(**others),
        "program": "coco_eval",
        "dataset": "coco",
        "image_size": [600, 1024],
        "AP": 0.2761,
        "Relative Flops/mean": 0.56,
        "Relative Flops/std": 0.085,
        "reference_model": "101",
    }


def test_tables_and_figures_of_the_paper(run, write, tmp_path):
    units = {f"block{b}/num_units_mean": mean for b, mean in enumerate((2.3, 3.8), 1)}
    for size in (224, 352):
        write(f"v{size}", **classification(size=size))
        write(f"s{size}", **classification(model_type="sact", size=size, **units))
    write("v50", **classification("3_4_6_3"))
    write("b", **classification("2_4_13_3", baseline_of="sact"))
    write("d", **detection(model_type="sact"))
    page, output = run()
    assert "Wrote" in output and "7 evaluations, 5 figures; 0 files left" in output
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    sact = "| SACT, ResNet-101, tau 0.005 | 9 | "
    assert f"{sact}7e+09 ± 3.5e+08 | 2.3, 3.8 | 75.12 | 92.76 |" in rows
    assert f"{sact}1.73e+10 ± 8.6e+08 | 2.3, 3.8 | 75.12 | 92.76 |" in rows
    assert "| ResNet-50 | 9 | 1e+10 ± 5e+08 | 3, 4, 6, 3 | 75.12 | 92.76 |" in rows
    assert any(row.startswith("| SACT baseline, ResNet 2_4_13_3 |") for row in rows)
    assert f"{sact}7e+09 ± 3.5e+08 | 56.0 ± 8.5 | ResNet-101 | 27.61 |" in rows
    for figure in ("7a", "7b", "7c", "7d"):
        assert figure in page
    pictures = sorted((tmp_path / "report").glob("*.png"))
    assert len(pictures) == 5
    for picture in pictures:
        assert f"({picture.name})" in page
        assert matplotlib.image.imread(picture).std() > 0.05
    # At 224 the ordinary networks are a line; the others are points.
    assert "Of one point only: SACT baseline; SACT, ResNet-101." in page


def test_dead_units_beside_how_training_began(run, write):
    dead = {"block1/dead_units": 0, "block2/dead_units": 2}
    sact = classification(model_type="sact", **dead)
    network = {"kind": "ImagenetResNet", "config": {"halting_bias": -3.0}}
    for name, given in (
        ("a", ["--finetune_path=/x/y", "--tau=0.005"]),
        ("b", ["--halting_bias=0.0"]),
        ("c", None),
    ):
        training = {} if given is None else {"training": {"flags": given}}
        write(name, **sact, network=network, **training)
    write("vanilla", **classification())
    page, _ = run()
    start = "| SACT, ResNet-101, tau 0.005 | "
    end = " | 9 | 0, 2 | 2 | 75.12 | 7e+09 ± 3.5e+08 |"
    rows = page.splitlines()
    for middle in ("yes | -3.0", "no | 0.0", " | "):
        assert start + middle + end in rows
    assert page.count("Dead units") == 1


def test_data_of_several_kinds_stand_apart(run, write):
    write("a", **classification())
    write("b", **classification(dataset="shapes"))
    write("c", **classification("5_5_5", program="cifar_main", image_size=32))
    page, _ = run()
    for source in (
        "imagenet_eval, tfrecord",
        "imagenet_eval, shapes",
        "cifar_main, tfrecord",
    ):
        assert page.count(f"## Classification: {source}") == 1
    assert "| ResNet-32 |" in page


def test_older_files_are_read_and_said_to_lack_what_they_lack(run, write):
    row = classification()
    kept = ("checkpoint", "global_step", "eval/Accuracy", "eval/Recall@5")
    path = write("a", **{k: v for k, v in row.items() if k in kept or "Flops" in k})
    page, output = run()
    assert "1 older files do not say model, type, tau and image size" in output
    assert "Files that do not say model, type, tau and image size" in page
    assert f"| {path} | 9 | 1e+10 ± 5e+08 |  | 75.12 |  |" in page


@pytest.mark.parametrize(
    "entries, reason",
    [
        (dict(program="saliency_eval"), "is of the program 'saliency_eval'; expected"),
        (dict(program=[3]), "is of the program [3]; expected one of cifar_main"),
        (dict(version=2), "is of version 2; this program reads 1"),
        ({"eval/Accuracy": 2}, "has eval/Accuracy 2; expected a finite number from 0"),
        ({"Total Flops/std": None}, "it has Total Flops/std null"),
        (dict(tau="x"), "it has tau 'x'; expected a finite number"),
        (dict(model=None), "it has model null; expected a string"),
        (dict(image_size=[2, 2]), "it has image_size [2, 2]; expected an integer"),
    ],
)
def test_other_files_are_named_and_counted(run, write, entries, reason):
    write("good", **classification())
    path = write("other", **{**classification(), **entries})
    page, output = run()
    assert f"Left out: {path}: " in output and reason in output
    assert "1 evaluations" in output and "1 files left out" in output
    assert "## Left out: 1 files" in page and f"* {path}: " in page


def test_what_is_no_evaluation(program, refusal, write, tmp_path, capsys):
    options = dict(output_dir=str(tmp_path / "report"))
    pattern = str(tmp_path / "*.json")
    assert refusal(**options).startswith("--evaluations: must be given")
    assert "matches no file" in refusal(evaluations=[pattern], **options)
    for name, content in (("a", "["), ("b", "null"), ("c", "{}"), ("d", "[1]")):
        (tmp_path / f"{name}.json").write_text(content)
    message = refusal(evaluations=[pattern], **options)
    assert message.endswith("none of the 4 files is an evaluation of this project")
    assert capsys.readouterr().out.count("Left out: ") == 4
    assert not (tmp_path / "report").exists()


def test_it_reads_what_programs_record(run, write, tmp_path):
    model = sact_tf.cifar_resnet("1", "sact", base_channels=2, tau=0.25)
    path = sact_tf.save_slim_checkpoint(model, str(tmp_path / "model.ckpt-7"), 7)
    results = {k: v for k, v in classification().items() if "/" in k}
    record = evaluating.record(
        "cifar_main", model.options, path, 32, dataset="tfds", baseline_of=None
    )
    write("a", **record, **results)
    page, _ = run()
    assert "| SACT, ResNet-8, tau 0.25 | 7 |" in page
