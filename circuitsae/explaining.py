"""Questions about why: what stands behind an attention score, and through which heads an edge leads."""

from circuitsae.attribution.attention import AttentionScore, score_pairs
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
