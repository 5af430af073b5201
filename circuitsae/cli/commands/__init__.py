"""One module a command: `configure` adds its options to a parser, `run` does the work and imports what that needs."""
