"""Old names of modules that moved: they work as imports and as commands."""

from __future__ import annotations

import sys
from types import ModuleType

from absl import flags

from experiments.common import programs

# Flags adopted here belong to the program that asks for it, and to its --help.
flags.disclaim_key_flags()


def stand_in(name: str, module: ModuleType) -> None:
    """Makes a module answer under the old name that calls this.

    Imported, the old name is the very same module object. Run, it has the module's
    description and flags in --help, and runs its `main`.

    Args:
        name: `__name__` of the caller.
        module: What the caller's name stands for now.
    """
    if name != "__main__":
        sys.modules[name] = module
        return
    sys.modules[name].__doc__ = module.__doc__
    flags.adopt_module_key_flags(module)
    programs.run(module.main)
