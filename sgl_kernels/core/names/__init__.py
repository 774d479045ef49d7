"""The names that core does know, as plain words: of backends and their aliases, and of ops and their groups."""
