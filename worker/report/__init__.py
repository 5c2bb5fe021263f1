"""Comparisons of jobs: tables and figures."""
