"""The trials are no tests of pytest's: `tests/compose/run` runs them where there is an engine."""

collect_ignore = ["engine"]
