"""What each operation means: one folder per family."""
