"""Questions about calls that nobody made: shapes from a command line as the facts of a call."""
