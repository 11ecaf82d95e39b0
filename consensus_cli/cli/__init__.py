"""The `consensus` command: words to functions."""
