"""What works on this machine and what would help: the `diagnosis`, and the `child` that tries what may crash."""
