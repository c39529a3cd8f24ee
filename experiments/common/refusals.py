"""Which flag an error is about: what the library says names arguments and files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from absl import flags

FLAGS = flags.FLAGS
_FLAGS_OF = {"relative": "target_relative_flops"}  # of arguments of other names


def explain(error: Exception) -> str:
    """Returns an error's message, with the flag and its value before it.

    Messages that name a flag stay as they are. Others begin with the argument or the
    file that the flag gave.
    """
    message = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if message.startswith("--"):
        return message
    name = _by_argument(message) or _by_path(message)
    return f"--{name}={_shown(FLAGS[name].value)}: {message}" if name else message


def _defined() -> Iterator[flags.Flag]:
    for module, defined in FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] != "absl":
            yield from defined


def _shown(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _by_argument(message: str) -> str | None:
    """The flag that has the name with which a message begins."""
    word = re.match(r"\w+", message)
    name = _FLAGS_OF.get(word[0], word[0]) if word else None
    return next((f.name for f in _defined() if f.name == name), None)


def _by_path(message: str) -> str | None:
    """The flag whose value is the longest path in a message."""
    found = []
    for flag in _defined():
        values = flag.value if isinstance(flag.value, list) else [flag.value]
        for value in values:
            if not isinstance(value, str) or not value:
                continue
            path = os.path.expanduser(value)
            if os.sep not in path and not os.path.exists(path):
                continue  # a word or a number that may stand anywhere
            for form in {path.rstrip(os.sep), os.path.realpath(path)}:
                pattern = rf"(^|[\s'\"(=]){re.escape(form)}($|[{os.sep}\s'\":,;.)])"
                if form and re.search(pattern, message):
                    found.append((len(form), flag.name))
    return max(found)[1] if found else None
