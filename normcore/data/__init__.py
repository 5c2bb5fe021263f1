"""Datasets, one per file, resident on the device."""
