"""Numbers inside and outside of domains, as values and as texts."""

import math

import numpy as np
import pytest

from sact_tf import domains
from sact_tf.domains import Domain

STEPS = Domain(1, is_integer=True)


@pytest.mark.parametrize(
    "domain, value, expected",
    [
        (domains.FINITE, np.float32(0.5), 0.5),
        (domains.FINITE, np.array(2), 2),
        (STEPS, np.int64(7), 7),
        (STEPS, 7.0, 7),
        (STEPS, domains.MAX_INT64, domains.MAX_INT64),
        (domains.FRACTION, 0, 0),
        (domains.FRACTION, 1, 1),
        (domains.POSITIVE, 1e-300, 1e-300),
    ],
)
def test_inside(domain, value, expected):
    got = domain.check(value, "x")
    assert got == expected and type(got) in (int, float)


@pytest.mark.parametrize(
    "domain, value, message",
    [
        (domains.FINITE, math.nan, "x must be a finite number; got nan"),
        (domains.FINITE, -math.inf, "x must be a finite number; got -inf"),
        (domains.FINITE, 10**400, "x must be a finite number; got 1000"),
        (domains.FINITE, np.float16("nan"), "got nan"),
        (domains.FINITE, "1", "got '1'"),
        (domains.FINITE, True, "got True"),
        (domains.FINITE, np.True_, "got True"),
        (domains.FINITE, [1.0], r"got \[1.0\]"),
        (domains.FINITE, None, "got null"),
        (STEPS, 0, "x must be an integer >= 1 within 64 bits; got 0"),
        (STEPS, 1.5, "got 1.5"),
        (STEPS, 2**63, "got 9223372036854775808"),
        (STEPS, 1e300, "got 1e"),
        (domains.POSITIVE, 0.0, "x must be a finite number > 0; got 0.0"),
        (domains.FRACTION, 1.01, "x must be a finite number from 0 to 1; got 1.01"),
        (Domain(high=3), 4, "x must be a finite number <= 3; got 4"),
        (Domain(0, 3, above=True), 0, "must be a finite number > 0 and <= 3; got 0"),
    ],
)
def test_outside(domain, value, message):
    with pytest.raises(ValueError, match=message) as error:
        domain.check(value, "x")
    assert len(str(error.value)) < 200


def test_texts():
    assert STEPS.parse(" 12 ", "--n") == 12
    assert STEPS.parse("1e3", "--n") == 1000
    assert domains.FINITE.parse("-2.5", "--n") == -2.5
    for text in ("nan", "inf", "0", "two", "", "1.5", "9" * 30, "1e999"):
        with pytest.raises(ValueError, match="--n must be an integer >= 1"):
            STEPS.parse(text, "--n")


def test_a_number_too_long_to_print():
    with pytest.raises(ValueError, match="STEPS must be an integer"):
        STEPS.check(10**5000, "STEPS")
