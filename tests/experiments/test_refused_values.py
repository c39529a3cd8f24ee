"""Every flag of every program refuses what it cannot be, and says what it can be."""

import importlib
import re
import sys

import pytest
from absl import flags

from experiments.command import COMMANDS
from experiments.common import numbers, programs
from sact_tf.domains import Domain

BAD = {
    flags.IntegerParser: ["x", "1.5", "nan", "9" * 25, "-" + "9" * 25],
    flags.FloatParser: ["x", "nan", "inf", "-inf"],
    flags.EnumParser: ["x", ""],
    flags.BooleanParser: ["x"],
}


@pytest.fixture(params=sorted({module for module, _ in COMMANDS.values()}))
def defined(request, monkeypatch):
    """Flags of a program, as a parser of their own."""
    name = f"experiments.{request.param}"
    before = set(flags.FLAGS)
    monkeypatch.delitem(sys.modules, name, raising=False)
    try:
        importlib.import_module(name)
    except SystemExit as error:  # a package is missing
        pytest.skip(str(error))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS([name])
    own = {
        flag.name: flag
        for module, of_module in flags.FLAGS.flags_by_module_dict().items()
        if module.partition(".")[0] != "absl"
        for flag in of_module
        if flag.name not in before
    }
    yield own
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    sys.modules.pop(name, None)


def refusal(name, value):
    flag = flags.FLAGS[name]
    kept, present = flag.value, flag.present
    try:
        programs.parse_flags(["program", f"--{name}={value}"])
        numbers.check()
    except SystemExit as error:
        return str(error).removeprefix("program: error: ")
    except ValueError as error:
        return str(error)
    finally:
        flag.value, flag.present = kept, present
    return None


def test_every_flag_says_what_it_accepts(defined):
    assert defined
    for name, flag in defined.items():
        kinds = [kind for kind in BAD if isinstance(flag.parser, kind)]
        for value in BAD[kinds[0]] if kinds else []:
            said = refusal(name, value)
            assert said is not None, f"--{name}={value} is accepted"
            assert said.startswith(f"--{name}={value}: "), said
            words = said[len(f"--{name}={value}: ") :]
            domain = numbers.domain_of(flag)
            if domain is not None:
                assert words.startswith(f"must be {domain}"), said
            else:
                assert re.search(r"should be one of|boolean", words), said


def test_a_flag_of_another_name_is_told():
    with pytest.raises(SystemExit, match="program: error: .*'learning_rat'.*--help"):
        programs.parse_flags(["program", "--learning_rat=1"])


def test_domains_are_worded():
    assert str(Domain(0, 1)) == "a finite number from 0 to 1"
