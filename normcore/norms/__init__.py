"""Activation norms, one per file, `num_features` first."""
