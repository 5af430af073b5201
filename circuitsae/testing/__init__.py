"""Models whose circuits are known, to hold the engine (and methods of your own) to the truth."""
