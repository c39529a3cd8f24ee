"""What is known of a trained network, and how it is told in words."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence

from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.domains import AT_LEAST_0, COUNT, FINITE, brief

_DECIMAL = 1000


def _mapping() -> reading.Field:
    def convert(value):
        if not isinstance(value, Mapping):
            raise ValueError(value)
        return dict(value)

    return reading.Field(convert, "a mapping")


def _texts() -> reading.Field:
    def convert(value):
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise ValueError(value)
        return tuple(value)

    return reading.Field(convert, "a list of strings")


def _sides() -> reading.Field:
    def convert(value):
        sides = value if isinstance(value, list) else [value]
        return tuple(AT_LEAST_0.convert(side) for side in sides)

    return reading.Field(convert, "a side in pixels, or a list of two")


_FIELDS = {
    "name": reading.text(),
    "title": reading.text(),
    "network": _mapping(),
    "class_names": _texts(),
    "preprocessing": reading.text(),
    "image_size": _sides(),
    "data": _mapping(),
    "evaluation": _mapping(),
    "training": _mapping(),
    "limits": _texts(),
    "start": reading.Field(reading.text().convert, "a string", ""),
    "recipe": reading.text(),
    "times": reading.Field(lambda v: [dict(row) for row in v], "a list", ()),
}
_DATA = {"name": reading.text(), "terms": reading.text()}
_EVALUATION = {
    "program": reading.text(),
    "dataset": reading.text(),
    "metric": reading.text(),
    "value": reading.number(FINITE),
    "value_float32": reading.number(FINITE),
    "num_examples": reading.number(COUNT),
    "split": reading.text(),
    "flops": reading.number(AT_LEAST_0),
    "flops_std": reading.number(AT_LEAST_0),
    "relative_flops": reading.number(AT_LEAST_0),
    "relative_to": reading.text(),
    "global_step": reading.number(AT_LEAST_0),
    "others": _mapping(),
}
_TRAINING = {
    "program": reading.text(),
    "commit": reading.text(),
    "machine": reading.text(),
    "seconds": reading.number(AT_LEAST_0),
}
_TIME = {
    "side": reading.text(),
    "milliseconds": reading.number(AT_LEAST_0),
    "machine": reading.text(),
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What a network of the zoo is, does and is not good for.

    Attributes:
        name: By which it is loaded.
        title: What it is, in words.
        network: Kind of network and what it is made with; see `kinds.describe`.
        class_names: Of the logits; of a detector of class 1, class 2, and so on.
        preprocessing: What images go through, in words of `preprocess_input`.
        image_size: Sides of the images it was trained on, in pixels.
        data: `name` and `terms` of the data.
        evaluation: Results; see `experiments.zoo_pack`.
        training: Program, flags, commit, machine, seconds.
        limits: What it is not good for, sentences.
        recipe: Name of the file with the flags that trained it.
        start: Name of the recipe of the network it was trained from; "": none.
        times: Measured milliseconds per image, a mapping for each side.
        size: Of the file, in bytes.
    """

    name: str
    title: str
    network: Mapping[str, object]
    class_names: tuple[str, ...]
    preprocessing: str
    image_size: tuple[int, ...]
    data: Mapping[str, str]
    evaluation: Mapping[str, object]
    training: Mapping[str, object]
    limits: tuple[str, ...]
    recipe: str
    start: str = ""
    times: Sequence[Mapping[str, object]] = ()
    size: int = 0

    @classmethod
    def of(cls, entries: Mapping[str, object], size: int, where: str) -> Card:
        """Makes a card of what a file holds.

        Args:
            entries: By the names above.
            size: Of the file, in bytes.
            where: What an error calls the file.

        Raises:
            DataError: An entry is missing, or something else.
        """
        row = reading.checked_row(entries, _FIELDS, f"{where}: the card")
        for name, fields in (
            ("data", _DATA),
            ("evaluation", _EVALUATION),
            ("training", _TRAINING),
        ):
            row[name] = reading.checked_row(row[name], fields, f"{where}: {name}")
        row["times"] = [
            reading.checked_row(time, _TIME, f"{where}: times[{k}]")
            for k, time in enumerate(row["times"])
        ]
        given = row["training"].get("flags", [])
        if not isinstance(given, list) or not all(isinstance(f, str) for f in given):
            raise DataError(f"{where}: training has flags {brief(given)}")
        known = {field.name for field in dataclasses.fields(cls)} - {"size"}
        values = {name: row[name] for name in known if name in row}
        return cls(size=size, **values)

    @property
    def result(self) -> str:
        """The main result, as in "accuracy 90.12 %"."""
        row = self.evaluation
        return f"{row['metric']} {100 * row['value']:.2f} %"

    @property
    def relative_flops(self) -> str:
        """Operations relative to those of the network that the card names."""
        return f"{100 * self.evaluation['relative_flops']:.1f} %"

    @property
    def kilobytes(self) -> str:
        """Size of the file."""
        return f"{self.size / _DECIMAL:.0f} kB"

    def __str__(self) -> str:
        return markdown(self)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def markdown(card: Card) -> str:
    """Returns a card in Markdown, from a heading of level 2."""
    row, training = card.evaluation, card.training
    parts = [f"## {card.name}", f"{card.title}."]
    loss = 100 * (row["value_float32"] - row["value"])
    facts = [
        ("load", f'`sact_tf.load("{card.name}")`'),
        (
            "images",
            f"{_sides_in_words(card)}, {card.preprocessing}",
        ),
        ("classes", ", ".join(card.class_names)),
        (
            "result",
            f"{card.result} on {row['num_examples']} images ({row['split']})",
        ),
        (
            "with float32 weights",
            f"{100 * row['value_float32']:.2f} %, {loss:+.2f} points",
        ),
        (
            "operations per image",
            f"{row['flops']:.4g} ± {row['flops_std']:.2g}, {card.relative_flops} of "
            f"{row['relative_to']}",
        ),
    ]
    facts += [(name, str(value)) for name, value in row["others"].items()]
    facts += [
        (
            f"time per image, {time['side']}",
            f"{time['milliseconds']:.2f} ms ({time['machine']})",
        )
        for time in card.times
    ]
    if card.start:
        facts.append(("training started from", card.start))
    facts += [
        ("data", card.data["name"]),
        ("terms of the data", card.data["terms"]),
        ("trained for", f"{row['global_step']:g} steps, {_duration(training)}"),
        ("trained on", training["machine"]),
        ("trained by", f"commit {training['commit']}"),
        ("size", card.kilobytes),
    ]
    parts.append(table(["what", "value"], facts))
    parts.append("\n".join(["```bash", command(card), "```"]))
    parts.append("\n".join(f"* {limit}" for limit in card.limits))
    return "\n\n".join(parts)


def command(card: Card) -> str:
    """Returns the command that trains such a network."""
    parts = [
        f"python -m experiments.{card.training['program']}",
        f"--flagfile=experiments/recipes/{card.recipe}",
    ]
    return " ".join(parts)


def _sides_in_words(card):
    if len(card.image_size) == 1:
        return f"{card.image_size[0]:g}x{card.image_size[0]:g} pixels"
    short, long = card.image_size
    limit = f", long side at most {long:g}" if long else ""
    return f"short side {short:g} pixels{limit}"


def _duration(training):
    minutes = training["seconds"] / 60
    return f"{minutes:.0f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def page(cards: Sequence[Card]) -> str:
    """Returns the page of all cards, docs/zoo.md."""
    parts = [
        "# Trained networks",
        "They come with the package. `sact_tf.list_networks()` names them and "
        "`sact_tf.load(name)` loads one; `sact models` lists them, and `sact models "
        'NAME` prints a card. With `execution="perforated"` they compute active '
        "positions only.",
        "Weights are stored in half precision, batch normalization and biases in "
        "single, and all are float32 once loaded. Results are those of the stored "
        "weights; what the rounding cost stands beside. Each network is one run, of "
        "one seed, and so is each number. Operations are two for a multiplication and "
        "addition, of convolutions alone (of recurrent attention those of dense "
        "layers). This page is written by `python -m experiments.models "
        "--write_cards=docs/zoo.md` of what the files hold; no number is typed.",
    ]
    parts = [textwrap.fill(part, 118, break_on_hyphens=False) for part in parts]
    if not cards:
        parts.append("No network has been packed yet.")
        return "\n\n".join(parts) + "\n"
    parts.append(listing(cards))
    parts += map(markdown, cards)
    return "\n\n".join(parts) + "\n"


def listing(cards: Sequence[Card]) -> str:
    """Returns the table of all networks."""
    return table(
        ["name", "result", "operations", "size"],
        [[c.name, c.result, c.relative_flops, c.kilobytes] for c in cards],
    )
