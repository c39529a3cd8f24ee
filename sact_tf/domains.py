"""Which numbers are meant: one check for flags, arguments and numbers in files."""

from __future__ import annotations

import dataclasses
import math
import reprlib

import numpy as np

MAX_INT64 = 2**63 - 1
MAX_SIDE = 65535
"""Largest side of an image in pixels; that of the JPEG format."""

MAX_UNITS = 1000
"""Most residual units of a block; more are built for ever."""

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 80


def brief(value: object) -> str:
    """Returns a value for an error message: on one line, and not too long."""
    if value is None:
        return "null"
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return " ".join(_brief.repr(value).split())
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f"{type(value).__name__} of more than 4300 digits"


def first_line(error: Exception) -> str:
    """Returns what an error says, on one line: the first that is not blank.

    >>> first_line(OSError("\\n no space \\n left")), first_line(EOFError())
    ('no space', 'EOFError')
    """
    # TensorFlow's errors print the place in the program behind the message.
    text = str(getattr(error, "message", error))
    lines = (line.strip() for line in text.splitlines())
    return next(filter(None, lines), type(error).__name__)


@dataclasses.dataclass(frozen=True)
class Domain:
    """Finite numbers between limits; truth values and strings are none.

    Integers lie within 64 bits. NumPy's numbers, and floats that are whole numbers
    where an integer is meant, count.

    Attributes:
        low: The smallest; None: no limit.
        high: The largest; None: no limit.
        is_integer: Whether numbers are integers.
        above: Whether `low` itself is left out.

    >>> Domain(0, 1).check(0.5, "score")
    0.5
    >>> Domain(1, is_integer=True).check(float("nan"), "--steps")
    Traceback (most recent call last):
    ...
    ValueError: --steps must be an integer >= 1 within 64 bits; got nan
    """

    low: float | None = None
    high: float | None = None
    is_integer: bool = False
    above: bool = False

    def __str__(self) -> str:
        words = ["an integer" if self.is_integer else "a finite number"]
        if self.low is not None and self.high is not None and not self.above:
            words.append(f"from {self.low} to {self.high}")
        else:
            if self.low is not None:
                words.append(f"{'>' if self.above else '>='} {self.low}")
            if self.high is not None:
                words.append(f"{'and ' if self.low is not None else ''}<= {self.high}")
        if self.is_integer and self.high is None:
            words.append("within 64 bits")
        return " ".join(words)

    def convert(self, value: object) -> int | float:
        """Returns the number as Python's int or float.

        Raises:
            ValueError: It is none of this domain.
        """
        if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0:
            value = value.item()
        if type(value) not in (int, float):
            raise ValueError(value)
        try:
            is_inside = self._contains(value)
        except OverflowError:  # an integer too large for a float
            is_inside = False
        if not is_inside:
            raise ValueError(value)
        return int(value) if self.is_integer else value

    def _contains(self, value: int | float) -> bool:
        if not math.isfinite(value):
            return False
        if self.is_integer and not (value == int(value) and abs(value) <= MAX_INT64):
            return False
        if self.low is not None and value <= self.low:
            return value == self.low and not self.above
        return self.high is None or value <= self.high

    def check(self, value: object, name: str) -> int | float:
        """Returns `convert(value)`.

        Raises:
            ValueError: It is none of this domain; names argument and value.
        """
        try:
            return self.convert(value)
        except ValueError:
            raise ValueError(f"{name} must be {self}; got {brief(value)}") from None

    def parse(self, text: str, name: str) -> int | float:
        """Returns the number that a text stands for, as of a flag.

        Raises:
            ValueError: It is none of this domain; names flag and text.
        """
        text = str(text).strip()
        for number in (int, float):
            try:
                return self.convert(number(text))
            except (ValueError, OverflowError):
                continue
        raise ValueError(f"{name} must be {self}; got {brief(text)}")


def has_too_many_units(model: object) -> bool:
    """Whether numbers of residual units per block, as in "3_4_23_3", are too large.

    Args:
        model: What tells a network's depth; what else it may be, the network checks.
    """
    return any(
        part.isdecimal() and (len(part) > 9 or int(part) > MAX_UNITS)
        for part in str(model).split("_")
    )


FINITE = Domain()
AT_LEAST_0 = Domain(0)
POSITIVE = Domain(0, above=True)
SIGMA = Domain(0, 10000)
"""Blurs in pixels; of wider ones, filters fill any memory."""
COUNT = Domain(1, is_integer=True)
FRACTION = Domain(0, 1)
INPUT_SIDE = Domain(1, 8192, is_integer=True)
"""Sides of what a network is run on; activations of larger ones fill any memory."""
OPTIONAL_SIDE = Domain(0, INPUT_SIDE.high, is_integer=True)
"""The same; 0: none is asked for."""
SEED = Domain(0, 2**32 - 1, is_integer=True)
"""Seeds that NumPy takes as well as TensorFlow."""
