"""Programs that measure time and memory; each prints what it measured."""
