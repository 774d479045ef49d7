"""The parity matrix: every op, case, dtype and backend (a `cell`) against float64, within a `tolerance`."""
