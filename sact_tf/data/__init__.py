"""Data sources; each gives `Examples`."""
