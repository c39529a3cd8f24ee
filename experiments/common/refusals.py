"""Which flag an error is about: what the library says names arguments and files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from absl import flags

from experiments.common import numbers
from sact_tf.checkpoint_kinds import (
    CLASSIFIER,
    DETECTOR,
    SEGMENTER,
    CheckpointKindError,
)

FLAGS = flags.FLAGS
_TAKEN_BY = {
    DETECTOR: "coco_eval, coco_detect and coco_export take it, saliency_eval and "
    "imagenet_ponder_map its blocks 1 to 3, and coco_train and segmentation_train as "
    "--finetune_path",
    SEGMENTER: "segmentation_eval, segmentation_predict and segmentation_export take "
    "it, and segmentation_train as --finetune_path",
    CLASSIFIER: "imagenet_eval (cifar_main of CIFAR-10), imagenet_ponder_map and "
    "export_saved_model take it, and coco_train and segmentation_train as "
    "--finetune_path",
}
_FLAGS_OF = {  # of arguments of other names
    "relative": "target_relative_flops",
    "scales": "min_scale",
    "split": "split_name",
}
# A number in "NAME 8 is ..." or, of anything, in "...; got 8".
_TOLD = r"^\w+ (-?\d[\w.+-]*)\s|; got (-?\d[\w.+-]*|'[^']*')"


def explain(error: Exception) -> str:
    """Returns an error's message, with the flag and its value before it.

    Messages that name a flag stay as they are. Others begin with the argument or the
    file that the flag gave. Of a flag that was not given and has no value, the value is
    what the program took in its place, which the message tells. Of a checkpoint of
    another kind of model, the message ends with the programs that take it.
    """
    message = str(error)
    cause = error if isinstance(error, CheckpointKindError) else error.__cause__
    if isinstance(cause, CheckpointKindError):
        message = f"{message}; {_TAKEN_BY[cause.kind]}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if message.startswith("--"):
        return message
    name = _by_argument(message) or _by_path(message)
    return f"--{name}={_value_of(name, message)}: {message}" if name else message


def explain_parsing(error: flags.Error) -> str:
    """Returns what is wrong with a command line: flag, value and what is accepted."""
    message = str(error)
    found = re.match(r"flag --(\w+)=(.*?): ", message, re.DOTALL)
    if found is None:
        return message
    name, value = found.groups()
    domain = numbers.domain_of(FLAGS[name])
    accepted = message[found.end() :] if domain is None else f"must be {domain}"
    return f"--{name}={value}: {accepted}"


def _defined() -> Iterator[flags.Flag]:
    for module, defined in FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] != "absl":
            yield from defined


def _value_of(name: str, message: str) -> str:
    """A flag's value, or the default that a message tells, such as "...; got 8"."""
    value = FLAGS[name].value
    if value is None:
        told = re.search(_TOLD, message)
        return told[1] or told[2] if told else "(default)"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _by_argument(message: str) -> str | None:
    """The flag that has the name with which a message begins, or stands for it."""
    word = re.match(r"\w+", message)
    if word is None:
        return None
    names = {flag.name for flag in _defined()}
    wanted = (word[0], _FLAGS_OF.get(word[0]))
    return next((name for name in wanted if name in names), None)


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
