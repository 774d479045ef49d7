"""Who can do it: one file per provider, each declaring IMPLEMENTATIONS."""
