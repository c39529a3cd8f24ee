"""The file of a search: its path, and all that was measured on it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping

from sact_tf import reading
from sact_tf.data.examples import DataError
from sact_tf.domains import brief
from sact_tf.perforation.candidates import Candidate
from sact_tf.writing import write_json

_STEP = ("levels", "kinds", "seed")


class SearchFile:
    """What a search measured and chose so far, in memory and in a file.

    Args:
        path: JSON file, read if it is there; None: none is kept.
        settings: Of the search.

    Raises:
        ValueError: The file is of a search of other settings.
        DataError: It is none of a search.
    """

    def __init__(self, path: str | None, settings: Mapping[str, object]):
        self._path = None if path is None else os.path.expanduser(os.fspath(path))
        self._content = {"settings": dict(settings), "steps": [], "measured": {}}
        if self._path is not None and os.path.exists(self._path):
            self._content = self._read(settings)

    def _read(self, settings):
        content = reading.read_json(self._path)
        if not isinstance(content, dict) or {"settings", "steps", "measured"} - set(
            content
        ):
            raise DataError(
                f"{self._path}: is no file of a search; expected settings, steps and "
                "measured"
            )
        stored, steps, measured = (
            content[key] for key in ("settings", "steps", "measured")
        )
        is_right = (
            isinstance(stored, dict)
            and isinstance(steps, list)
            and all(isinstance(s, dict) and set(_STEP) <= set(s) for s in steps)
            and isinstance(measured, dict)
            and all(isinstance(m, dict) for m in measured.values())
        )
        if not is_right:
            raise DataError(f"{self._path}: settings, steps or measured are damaged")
        for name, value in settings.items():
            if stored.get(name) != value:
                raise ValueError(
                    f"{self._path}: is of a search with {name} "
                    f"{brief(stored.get(name))}; got {brief(value)}. Name another "
                    "file, or remove it"
                )
        return content

    def committed(self, dense: Candidate) -> list[Candidate]:
        """Returns the candidates chosen so far.

        Args:
            dense: Where the search began.
        """
        return [
            dense._replace(
                levels=tuple(step["levels"]),
                kinds=tuple(step["kinds"]),
                seed=step["seed"],
            )
            for step in self._content["steps"]
        ]

    def commit(self, best, fractions: Mapping[str, float], speedup: float) -> None:
        """Notes a step.

        Args:
            best: What was chosen, `search.Scored`.
            fractions: Keep fractions by layer.
            speedup: Dense cost over this one.
        """
        candidate = best.candidate
        self._content["steps"].append(
            {
                "keep_fractions": dict(fractions),
                "levels": list(candidate.levels),
                "kinds": list(candidate.kinds),
                "seed": candidate.seed,
                "cost": best.cost,
                "speedup": speedup,
                "loss": best.loss,
                "price": best.price,
            }
        )
        self._write()

    def remember(self, what: str, key: str, measure: Callable[[], float]) -> float:
        """Returns a number that is measured only once.

        Args:
            what: Kind of the number.
            key: Names it among its kind.
            measure: Returns it.
        """
        known = self._content["measured"].setdefault(what, {})
        if key not in known:
            value = float(measure())
            known[key] = value if math.isfinite(value) else None  # as JSON has it
            self._write()
        return math.inf if known[key] is None else known[key]

    def _write(self):
        if self._path is not None:
            write_json(self._path, self._content)
