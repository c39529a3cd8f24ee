"""Whether the packages installed beside this one are ours, and no others of the name.

`custom_ops`, `object_detection` and `experiments` are names that others use too;
TensorFlow's older detection library is called `object_detection`.
"""

from __future__ import annotations

import importlib.util
import pathlib

NAMES = ("custom_ops", "object_detection", "experiments")


def check(*names: str) -> None:
    """Checks where packages would be imported from; imports none of them.

    Args:
        *names: Of packages; by default all of `NAMES`.

    Raises:
        ImportError: One is missing, or another of its name is found first; says where.
    """
    root = pathlib.Path(__file__).resolve().parent.parent
    for name in names or NAMES:
        spec = importlib.util.find_spec(name)
        places = (
            [] if spec is None else spec.submodule_search_locations or [spec.origin]
        )
        if (root / name) in [pathlib.Path(place).resolve() for place in places]:
            continue
        found = f"found first is {places[0]}" if places else "there is none"
        raise ImportError(
            f"package {name} must be the one beside {root / 'sact_tf'}, but {found}; "
            "uninstall or rename the other, or leave the directory that holds it"
        )
