"""What decides, without doing anything: implementations as data, policies, `select`, and the verdict as a value."""
