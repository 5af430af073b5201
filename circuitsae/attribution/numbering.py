"""All nodes of one task on one model, numbered: for questions that are not about chosen ones."""

import bisect

import torch

from circuitsae import names
from circuitsae.attribution.context import Context
from circuitsae.attribution.contributions import Sources
from circuitsae.errors import NodeError


class EveryNode:
    """Tokens, bias, features by dictionary, error nodes by hook point, in this order.

    Attributes:
        sources: The nodes as the edge engine takes them.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        n_tokens, device = context.run.n_tokens, context.run.tokens.device
        everywhere = torch.arange(n_tokens, device=device)
        sizes = [n_tokens, 1, *(len(n.positions) for n in context.nodes), *(n_tokens for _ in context.spliced.written)]
        self._starts = [sum(sizes[:k]) for k in range(len(sizes))]
        features = self._starts[2 : 2 + len(context.nodes)]
        errors = self._starts[2 + len(context.nodes) :]
        self._hooks = [*("" for _ in context.nodes), *context.spliced.written]
        self.bias = n_tokens
        self.count = sum(sizes)
        counted = [torch.arange(len(n.positions), device=device) for n in context.nodes]
        self.sources = Sources(
            features=tuple((own, own + start) for own, start in zip(counted, features, strict=True)),
            errors={
                hook: (everywhere, everywhere + start)
                for hook, start in zip(context.spliced.written, errors, strict=True)
            },
            tokens=(everywhere, everywhere),
            bias=self.bias,
        )

    def key(self, number: int) -> str:
        """Returns the key of a node."""
        block = bisect.bisect_right(self._starts, number) - 1
        at = number - self._starts[block]
        if block == 0:
            return names.token(at)
        if block == 1:
            return names.BIAS
        context, own = self.context, block - 2
        if own >= len(context.nodes):
            return names.error(self._hooks[own], at)
        nodes = context.nodes[own]
        return names.feature(context.spliced.dictionaries[own].site, int(nodes.indices[at]), int(nodes.positions[at]))

    def number(self, key: str) -> int:
        """Returns the number of the node of a key.

        Raises:
            NodeError: There is no such node on this prompt: no such feature is active there, say.
        """
        node, context = names.parse(key), self.context
        at = node.position if isinstance(node.position, int) else -1
        if node.kind == "bias":
            return self.bias
        if node.kind == "token" and 0 <= at < context.run.n_tokens:
            return at
        if node.kind == "error" and 0 <= at < context.run.n_tokens and node.site in context.spliced.written:
            return int(self.sources.errors[str(node.site)][1][at])
        if node.kind == "feature" and node.site in context.spliced.sites:
            own = context.spliced.dictionary_number(str(node.site))
            nodes = context.nodes[own]
            here = ((nodes.positions == at) & (nodes.indices == node.index)).nonzero().flatten()
            if len(here):
                return int(self.sources.features[own][1][here[0]])
        raise NodeError(
            f"There is no node {key!r} on this prompt of {context.run.n_tokens} tokens; expected a feature that is active "
            "there, an error node, a token or 'bias', at a position counted from 0."
        )
