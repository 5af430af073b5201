"""Models with dictionaries spliced in: hook points, leaves, freezes, runs."""
