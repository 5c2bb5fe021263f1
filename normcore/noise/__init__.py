"""Noise injected after the norms, one kind per file."""
