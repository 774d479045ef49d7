"""Pages about the committed results: tables, pictures and docs/performance.md, made in a checkout by `make docs`."""
