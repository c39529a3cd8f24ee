"""Programs around the library; run them as `python -m experiments.NAME` or by `sact`.

What they share is in `experiments.common`, what measures in `experiments.benchmarks`.
"""

import os
import sys

# TensorFlow's start-up says much that is no concern of users; --verbosity brings it
# back. It is read when TensorFlow is imported, before any flag is.
if not any(word.lstrip("-").startswith("verbosity") for word in sys.argv):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sact_tf import siblings

siblings.check()
