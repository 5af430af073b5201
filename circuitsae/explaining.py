"""Questions about why: what stands behind an attention score, and through which heads an edge leads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuitsae import names
from circuitsae.attribution.attention import AttentionScore, score_pairs
from circuitsae.attribution.heads import EdgeHeads, edge_heads
from circuitsae.model.modes import in_own_mode
from circuitsae.session import Session


@in_own_mode
def attention(
    session: Session, layer: int, head: int, query: int, key: int, *, relative: bool = True, top: int = 20
) -> AttentionScore:
    """Returns why a head looks from one position at another: the pairs of nodes behind its score.

    With normalisations frozen, the score before the softmax is a sum over pairs of a node on the query's side and one on
    the key's: features, error nodes, tokens, the bias. See `docs/attention.md`; QK attributions in "Tracing Attention
    Computation Through Feature Interactions" (Kamath et al., Anthropic, July 2025).

    Args:
        session: The task on the model.
        layer, head: The head.
        query, key: Positions of the prompt; negative ones count from its end.
        relative: The score minus its mean over all keys, weighted by the pattern, so that pairs with other keys count
            against it; `False` for the score by itself.
        top: How many pairs to list, and nodes of either side.

    Raises:
        InputError: There is no such head or position, or the head can't see the key from there.
        SpliceError: The model can't be frozen, or its scores are no product of queries and keys; the message names the
            hook point.

    Example:
        >>> import circuitsae as cs
        >>> task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
        >>> found = cs.attention(cs.Session(cs.load("tiny"), task), 1, 0, query=-1, key=1, top=10**6)
        >>> abs(found.held - found.total) < 1e-4
        True
    """
    return score_pairs(session.context.asking("ablation"), layer, head, query, key, relative=relative, top=top)


@in_own_mode
def heads(session: Session, edges: Sequence[tuple[str, str]]) -> list[EdgeHeads]:
    """Returns through which attention heads edges of a frozen graph lead: contributions, split exactly.

    Each contribution is the sum of what passes no attention, what passes each head and no other, and what passes two heads
    or more, with attention patterns and normalisation scales held (`linearisation="frozen"`). See `docs/attention.md`.

    Args:
        session: The task on the model.
        edges: Pairs of a source (feature, error node, token) and a target (feature), by key.

    Raises:
        NodeError: There is no such node on this prompt, or it can't be at that end of an edge.
        SpliceError: The model can't be frozen, or its heads are not what they are taken for; the message names the hook
            point.

    Example:
        >>> import circuitsae as cs
        >>> task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
        >>> session = cs.Session(cs.load("tiny"), task)
        >>> circuit = session.trace(max_nodes=32, linearisation="frozen")
        >>> edge = next((u, v) for u, v in circuit.graph.edges if "/" in u and "/" in v and "error" not in v)
        >>> found = cs.heads(session, [edge])[0]
        >>> abs(found.contribution - circuit.graph.edges[edge]["contribution"]) < 1e-4
        True
    """
    return edge_heads(session.context.asking("ablation"), edges)


@dataclass(frozen=True)
class Explanation:
    """Through which attention heads an edge leads, and why the strongest of them looked where it did.

    Attributes:
        heads: The edge, split by heads.
        score: What stands behind the score of the head that carries most, at the target's position for the source's;
            `None` where no head by itself carries anything.
    """

    heads: EdgeHeads
    score: AttentionScore | None

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values."""
        return {"heads": self.heads.to_json(), "score": None if self.score is None else self.score.to_json()}

    def __str__(self) -> str:
        return str(self.heads) if self.score is None else f"{self.heads}\n{self.score}"


@in_own_mode
def explain(session: Session, source: str, target: str, *, relative: bool = True, top: int = 5) -> Explanation:
    """Returns through which heads an edge of a frozen graph leads, and the pairs behind the strongest one's score.

    Args:
        session: The task on the model.
        source: A feature, error node or token, by key.
        target: A feature, by key.
        relative: Pairs of the score minus its mean over keys, as in `attention`; `False` for the score by itself, which
            says more where the head's weight is all but 1.
        top: How many pairs to list.

    Raises:
        NodeError, InputError, SpliceError: As for `heads` and `attention`.

    Example:
        >>> import circuitsae as cs
        >>> task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
        >>> session = cs.Session(cs.load("tiny"), task)
        >>> circuit = session.trace(max_nodes=32, linearisation="frozen")
        >>> edges = [(u, v) for u, v in circuit.graph.edges if "/" in u and "/" in v and "error" not in v]
        >>> why = cs.explain(session, *next((u, v) for u, v in edges if u.split("@")[1] != v.split("@")[1]))
        >>> why.score.query > why.score.key
        True
    """
    (found,) = heads(session, [(source, target)])
    if not found.heads:
        return Explanation(found, None)
    query, key = (int(names.parse(node).position or 0) for node in (target, source))
    strongest = found.heads[0]
    return Explanation(
        found, attention(session, strongest.layer, strongest.head, query, key, relative=relative, top=top)
    )
