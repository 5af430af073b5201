"""The `circuitsae` command: results on stdout or in files, progress on stderr, exit status 0, 1 or 2."""
