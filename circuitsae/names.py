r"""Node keys: the readable strings that name a circuit's nodes, and their parts.

A feature is `blocks.3.hook_mlp_out/17@5` (site, index, position), the error node beside it
`blocks.3.hook_mlp_out/error@5`, an input token `token@5`; `bias` and `metric` stand alone. Where the next tokens' logits
are the targets, `logit/262@5` is the one of token id 262, read at position 5: a metric node, too. Where a circuit is
aggregated over positions the `@5` is left out; in interventions `@*` means every position.

>>> parse("blocks.3.hook_mlp_out/17@5")
NodeKey(kind='feature', site='blocks.3.hook_mlp_out', index=17, position=5)
>>> parse("logit/262@5")
NodeKey(kind='metric', site=None, index=262, position=5)
>>> str(parse("token@2"))
'token@2'
>>> sorted(["blocks.10.hook_resid_post/0@1", "blocks.9.hook_resid_post/0@1"], key=sort_key)
['blocks.9.hook_resid_post/0@1', 'blocks.10.hook_resid_post/0@1']
"""

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from circuitsae.errors import NodeError
from circuitsae.kinds import NODE_KINDS, NodeKind

Kind = NodeKind
Position = int | Literal["*"] | None

BIAS = "bias"
METRIC = "metric"
LOGIT = "logit"

_REMEMBERED = 2**16  # keys

_KEY = re.compile(r"(?:(?P<site>[^/@\s]+)/(?P<part>\d+|error)|(?P<token>token))(?:@(?P<position>\d+|\*))?")


class NodeKey(NamedTuple):
    """A node key taken apart. `site` and `index` are None where the kind has none; `position` may be `"*"`."""

    kind: Kind
    site: str | None = None
    index: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index)
    position: Position = None

    def __str__(self) -> str:
        if self.kind == BIAS or (self.kind == METRIC and self.index is None):
            return self.kind
        at = "" if self.position is None else f"@{self.position}"
        if self.kind == "token":
            return f"token{at}"
        if self.kind == METRIC:
            return f"{LOGIT}/{self.index}{at}"
        return f"{self.site}/{'error' if self.kind == 'error' else self.index}{at}"

    def at(self, position: Position) -> "NodeKey":
        """Returns the same node at another position."""
        return self._replace(position=position)


def feature(site: str, index: int, position: Position = None) -> str:
    """Returns the key of a feature node."""
    return f"{site}/{index}" if position is None else f"{site}/{index}@{position}"


def error(site: str, position: Position = None) -> str:
    """Returns the key of an error node."""
    return f"{site}/error" if position is None else f"{site}/error@{position}"


def token(position: Position = None) -> str:
    """Returns the key of an input token's node."""
    return "token" if position is None else f"token@{position}"


def logit(token_id: int, position: Position = None) -> str:
    """Returns the key of the metric node that stands for one next token's logit."""
    return feature(LOGIT, token_id, position)


@lru_cache(_REMEMBERED)  # a graph's edges name its nodes again and again
def parse(key: str) -> NodeKey:
    """Takes a node key apart.

    Raises:
        NodeError: `key` is not of one of the forms above.
    """
    if key in (BIAS, METRIC):
        return NodeKey(key)
    match = _KEY.fullmatch(key)
    if match is None:
        raise NodeError(
            f"{key!r} is not a node key; expected 'SITE/INDEX@POSITION' (such as 'blocks.3.hook_mlp_out/17@5'), "
            "'SITE/error@POSITION', 'token@POSITION', 'bias', 'metric' or 'logit/TOKEN_ID@POSITION', where POSITION may "
            "be '*'."
        )
    at = match["position"]
    position: Position = None if at is None else "*" if at == "*" else int(at)
    if match["token"]:
        return NodeKey("token", position=position)
    if match["site"] == LOGIT and match["part"] != "error":
        return NodeKey(METRIC, index=int(match["part"]), position=position)
    if match["part"] == "error":
        return NodeKey("error", match["site"], position=position)
    return NodeKey("feature", match["site"], int(match["part"]), position)


@lru_cache(_REMEMBERED)
def layer_of(hook_point: str) -> int | None:
    """Returns the layer in a hook point's name, `None` for those outside the blocks (`hook_embed`)."""
    match = re.search(r"(?:^|\.)blocks\.(\d+)\.", hook_point)
    return int(match[1]) if match else None


@lru_cache(_REMEMBERED)
def sort_key(key: str) -> tuple[object, ...]:
    """Orders node keys as the model computes them: tokens, layers upward, metric last; numbers by value."""
    node = parse(key)
    site = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", node.site or "") if p)
    position = node.position if isinstance(node.position, int) else -1
    kind = NODE_KINDS.index(node.kind)
    rank = 0 if node.kind in ("token", "bias") else 2 if node.kind == "metric" else 1
    return (rank, site, position, kind, -1 if node.index is None else node.index)
