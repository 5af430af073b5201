"""An example of a circuitsae plugin, to copy."""
