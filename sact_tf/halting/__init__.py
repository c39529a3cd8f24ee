"""When to stop: halting rules, what they halt, and the heads that score it.

| part | file | its question |
|---|---|---|
| rule | `rule.py`, one more file for every rule | where does the next unit still run? |
| domain | `domain.py` | what halts: images or positions? |
| head | `heads.py` | what is the halting score? |

Every module of this folder is imported here, so that a rule is added in one file: it
registers its model types itself (`register_model_type`).
"""

import importlib
import pkgutil

from sact_tf.halting.cumulative import (
    EPSILON,
    CumulativeHalting,
    HaltingState,
    halting_step,
    initial_halting_state,
)
from sact_tf.halting.domain import DOMAINS, HaltingDomain, ImageDomain, PositionDomain
from sact_tf.halting.heads import (
    HALTING_BIAS,
    HaltingHead,
    ImageHaltingScore,
    SpatialHaltingScore,
)
from sact_tf.halting.rule import (
    CountingState,
    HaltingRule,
    ModelType,
    model_type,
    model_types,
    register_model_type,
)
from sact_tf.halting.stopping import BernoulliStop, ConfidenceThreshold

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "DOMAINS",
    "EPSILON",
    "HALTING_BIAS",
    "BernoulliStop",
    "ConfidenceThreshold",
    "CountingState",
    "CumulativeHalting",
    "HaltingDomain",
    "HaltingHead",
    "HaltingRule",
    "HaltingState",
    "ImageDomain",
    "ImageHaltingScore",
    "ModelType",
    "PositionDomain",
    "SpatialHaltingScore",
    "halting_step",
    "initial_halting_state",
    "model_type",
    "model_types",
    "register_model_type",
]
