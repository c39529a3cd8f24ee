"""Lists the trained networks that come with the package, or prints the card of one.

python -m experiments.models
python -m experiments.models sact-resnet32-cifar10
"""

from __future__ import annotations

from absl import flags

from experiments.common import programs
from sact_tf import zoo
from sact_tf.writing import write_bytes
from sact_tf.zoo import cards

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "write_cards", "", "Write the page of all cards to this file, docs/zoo.md."
)


def all_cards() -> list[cards.Card]:
    """Returns the cards of all networks, by name."""
    return [zoo.card(name) for name in zoo.list_networks()]


def rows(found: list[cards.Card]) -> list[str]:
    """Returns the lines of the list: name, result, operations, size."""
    cells = [(c.name, c.result, c.relative_flops, c.kilobytes) for c in found]
    cells.insert(0, ("name", "result", "FLOPs", "size"))
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip()
        for row in cells
    ]


def main(name: str | None = None) -> None:
    """Prints the list or a card, or writes the page."""
    if FLAGS.write_cards:
        write_bytes(FLAGS.write_cards, cards.page(all_cards()).encode())
        print(f"Wrote {FLAGS.write_cards}")
    elif name is not None:
        print(zoo.card(name))
    elif not zoo.list_networks():
        print("No trained network comes with this installation.")
    else:
        print("\n".join(rows(all_cards())))


if __name__ == "__main__":
    programs.run(main, max_arguments=1)
