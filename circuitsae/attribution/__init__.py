"""Node effects and edges: how much each node acts on the metric and on the others."""
