"""What the README and the pages in docs/ show works, and their links lead somewhere."""

import functools
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def python_blocks(page):
    blocks = _FENCED.findall(page.read_text())
    return [code for language, code in blocks if language == "python"]


@functools.cache
def run_blocks(page):
    """Runs a page's Python blocks, one after the other; returns what they define."""
    names = {}
    for k, code in enumerate(python_blocks(page), 1):
        exec(compile(code, f"{page.name}, Python block {k}", "exec"), names)
    return names


def prose(page):
    return _FENCED.sub("", page.read_text())


def anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def programs():
    """Programs by the name that `python -m experiments.NAME` takes."""
    folder = ROOT / "experiments"
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if '\nif __name__ == "__main__":' in path.read_text()
    }


@pytest.mark.parametrize(
    "page", [p for p in PAGES if python_blocks(p)], ids=lambda page: page.name
)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


def test_example_of_a_users_own_unit():
    names = run_blocks(ROOT / "docs" / "extending.md")
    assert "MyUnit" in names
    model = names["model"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    images = tf.random.stateless_normal([2, 8, 8, 3], [1, 2])
    labels = np.array([1, 2])
    # The loss of the first step has the ponder cost in it.
    expected = loss(labels, model(images, training=True)) + tf.add_n(model.losses)
    history = model.fit(images, labels, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [expected], rtol=1e-5)


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT) and target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_pictures_exist():
    shown = set()
    for page in PAGES:
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).is_file(), picture
            shown.add((page.parent / picture).resolve())
    assert shown == set((ROOT / "docs").glob("*.png"))


def test_the_readme_leads_to_every_page():
    links = re.findall(r"\]\(docs/(\w+\.md)", prose(README))
    assert set(links) == {page.name for page in PAGES[1:]}


def test_the_table_of_programs_is_complete():
    rows = re.findall(r"^\| \[`([\w.]+)`\]\(.+\) \| .+ \|$", prose(README), re.M)
    assert sorted(rows) == sorted(programs())


@every_page
def test_commands_name_programs(page):
    named = re.findall(r"\bexperiments\.((?:benchmarks\.)?\w+)", page.read_text())
    assert set(named) - {"NAME"} <= programs()


@every_page
def test_flags_exist(page):
    sources = "".join(p.read_text() for p in (ROOT / "experiments").rglob("*.py"))
    known = set(re.findall(r'"(\w+)"', sources)) | {"help", "flagfile"}
    # Those of pip and of Docker are not ours.
    text = re.sub(r"^```dockerfile\n.*?^```$", "", page.read_text(), flags=re.M | re.S)
    text = re.sub(r"^.*pip install.*$", "", text, flags=re.M)
    named = set(re.findall(r"(?<![\w-])--(\w+)", text))
    assert {flag.removeprefix("no") for flag in named - known} <= known
