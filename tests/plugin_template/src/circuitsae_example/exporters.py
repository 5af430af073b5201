"""An export format: a function from a circuit to the file's contents."""

from circuitsae.graph.circuit import Circuit


def as_node_list(circuit: Circuit) -> str:
    """One node a line, strongest first: its key, a tab, its effect."""
    return "".join(f"{row['node']}\t{row['effect']:+.4f}\n" for row in circuit.nodes_table() if "effect" in row)
