"""Microbenchmarks: `measure` runs them in turns on a `clock`, `ceilings` says what the machine could do."""
