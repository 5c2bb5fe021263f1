"""Models, one family per file; each takes a norm factory."""
