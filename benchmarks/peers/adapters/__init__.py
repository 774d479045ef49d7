"""One file for each peer: how it is started, and how a benchmark case is put to it."""
