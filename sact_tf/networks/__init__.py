"""Residual networks, one architecture per file."""
