"""Trials on a real Docker engine, one a file; `tests/compose/run` runs them."""
