"""Programs around the library; run them as `python -m experiments.NAME` or by `sact`.

What they share is in `experiments.common`, what measures in `experiments.benchmarks`.
"""

import importlib.util
import os
import runpy
import sys

# TensorFlow's start-up says much that is no concern of users; --verbosity brings it
# back. It is read when TensorFlow is imported, before any flag is.
if not any(word.lstrip("-").startswith("verbosity") for word in sys.argv):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

_library = importlib.util.find_spec("sact_tf").submodule_search_locations[0]
# By its path: the library takes seconds to import, which `sact --help` need not.
runpy.run_path(os.path.join(_library, "siblings.py"))["check"]()
