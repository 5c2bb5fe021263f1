"""Probes: small classes with one measuring method, which leave no footprints."""
