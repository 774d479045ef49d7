"""Machinery: knows no op and no backend."""
