"""What is done with a call after it went wrong: replay of its dump."""
