"""Programs around the library; run them as `python -m experiments.NAME`.

What they share is in `experiments.common`, what measures in `experiments.benchmarks`.
"""
