"""The positions at the end of a node's key: one, a slice, all, or those that are written in generation."""

import re

from circuitsae.errors import NodeError

NEW = "new"
EVERYWHERE = "*"

_SELECTOR = re.compile(r"(-?\d+)|(-?\d+)?:(-?\d+)?|\*|new")


def split_key(key: str) -> tuple[str, str | None]:
    """Takes the positions off a key.

    >>> split_key("blocks.3.hook_mlp_out/17@2:5")
    ('blocks.3.hook_mlp_out/17', '2:5')
    >>> split_key("token")
    ('token', None)
    """
    node, at, selector = key.rpartition("@")
    return (node, selector) if at else (key, None)


def select(key: str, selector: str, n_prompt: int, n_total: int | None = None) -> list[int]:
    """Returns the positions that a selector names in a sequence whose first `n_prompt` tokens are the prompt.

    Negative numbers count from the prompt's end; an open end reaches to the sequence's, which is the prompt's unless
    `n_total` says how many tokens there are.

    >>> select("token", "-2:", 5), select("token", "-2:", 5, 7), select("token", "new", 5, 7)
    ([3, 4], [3, 4, 5, 6], [5, 6])

    Raises:
        NodeError: It can't be read, names a position outside the sequence, or, of a prompt alone, none at all.
    """
    whole, n_total = n_total is None, n_prompt if n_total is None else n_total
    match = _SELECTOR.fullmatch(selector)
    if match is None:
        raise NodeError(
            f"The positions '@{selector}' of {key!r} can't be read; expected a position ('@5', '@-1'), a slice ('@2:5'), "
            "'@*' for all, or in generation '@new'."
        )
    if selector == EVERYWHERE:
        return list(range(n_total))
    if selector == NEW:
        return list(range(n_prompt, n_total))
    if match[1] is not None:
        position = int(match[1])
        if not -n_prompt <= position < n_total:
            raise NodeError(
                f"{key!r} is past the end of the prompt; its {n_prompt} tokens have positions 0 to {n_prompt - 1}."
            )
        return [position % n_prompt if position < 0 else position]
    low, high = (None if text is None else int(text) for text in (match[2], match[3]))
    low = 0 if low is None else low + n_prompt if low < 0 else low
    high = n_total if high is None else high + n_prompt if high < 0 else high
    found = list(range(n_total))[max(low, 0) : max(high, 0)]
    if not found and whole:
        raise NodeError(f"The slice of {key!r} is empty; the prompt's positions are 0 to {n_prompt - 1}.")
    return found
