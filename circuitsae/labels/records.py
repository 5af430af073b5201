"""What is known of a feature beyond its weights: a label, the tokens it promotes, where it is active, how often.

Plain data without torch. A source fills in what it knows; the rest is empty or `None`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from circuitsae import names


@dataclass(frozen=True, slots=True)
class Context:
    """A stretch of text on which a feature is active.

    Attributes:
        tokens: Its tokens' texts.
        activations: The feature's activation at each, 0 where it is not active.
        peak: The place in `tokens` of the largest activation of the text that this is a stretch of.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int

    @property
    def token(self) -> str:
        """The token of the largest activation."""
        return self.tokens[self.peak]

    @property
    def activation(self) -> float:
        """The largest activation."""
        return self.activations[self.peak]

    def marked(self, before: str = "[[", after: str = "]]") -> str:
        """Returns the text as one string, with marks round the token of the largest activation.

        >>> Context((" the", " keys", " are"), (0.0, 2.5, 0.0), 1).marked()
        ' the[[ keys]] are'
        """
        texts = list(self.tokens)
        texts[self.peak] = f"{before}{texts[self.peak]}{after}"
        return "".join(texts)


@dataclass(frozen=True, slots=True)
class Description:
    """What a source says about one feature.

    Attributes:
        site: Where its dictionary is attached.
        index: Its index in the dictionary.
        label: A few words; empty where the source has none.
        source: Who says so: `automatic`, `neuronpedia`, a file's name.
        promoted: Tokens whose logits its decoder row raises most, largest first, with by how much.
        suppressed: Tokens whose logits it lowers most, lowest first.
        contexts: Stretches of text on which it is most active, strongest first.
        density: Share of the tokens on which it is active.
        mean: Mean activation where it is active.
        largest: Largest activation.
        histogram: How many of its activations lie in each bin of `bin_width`, from 0 upwards.
        bin_width: Width of a bin, in units of the activation.
        address: A web page about it.
    """

    site: str
    index: int
    label: str = ""
    source: str = ""
    promoted: tuple[tuple[str, float], ...] = ()
    suppressed: tuple[tuple[str, float], ...] = ()
    contexts: tuple[Context, ...] = ()
    density: float | None = None
    mean: float | None = None
    largest: float | None = None
    histogram: tuple[int, ...] = ()
    bin_width: float | None = None
    address: str = ""

    @property
    def node(self) -> str:
        """The feature's key, without a position."""
        return names.feature(self.site, self.index)

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON-able data; what is not known is left out."""
        found: dict[str, Any] = {"node": self.node, "site": self.site, "index": self.index}
        for name in ("label", "source", "address", "density", "mean", "largest", "bin_width"):
            value = getattr(self, name)
            if value not in ("", None):
                found[name] = value
        for name in ("promoted", "suppressed"):
            if pairs := getattr(self, name):
                found[name] = [[token, amount] for token, amount in pairs]
        if self.histogram:
            found["histogram"] = list(self.histogram)
        if self.contexts:
            found["contexts"] = [
                {"tokens": list(c.tokens), "activations": list(c.activations), "peak": c.peak} for c in self.contexts
            ]
        return found


@runtime_checkable
class LabelStore(Protocol):
    """A source of labels, opened: what a plugin of the group `circuitsae.labels` gives for a name or path.

    Nothing is read before it is asked for. A feature that the source does not know is no error.
    """

    name: str

    def label(self, site: str, index: int) -> str:
        """Returns a feature's label, empty where there is none."""
        ...

    def describe(self, site: str, index: int) -> Description | None:
        """Returns all that is known of a feature, `None` where nothing is."""
        ...

    def labels(self, features: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Returns the labels of those of many features, given as (site, index), that have one."""
        ...


class Mapped:
    """A label store over what is in memory already.

    >>> store = Mapped({("blocks.0.hook_mlp_out", 7): "months"})
    >>> store.label("blocks.0.hook_mlp_out", 7)
    'months'
    """

    def __init__(self, labels: Mapping[tuple[str, int], str], name: str = "memory") -> None:
        self.name = name
        self._labels = dict(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, site: str, index: int) -> str:
        """Returns a feature's label, empty where there is none."""
        return self._labels.get((site, index), "")

    def describe(self, site: str, index: int) -> Description | None:
        """Returns the label as a description."""
        label = self.label(site, index)
        return Description(site, index, label, self.name) if label else None

    def labels(self, features: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Returns the labels of those of many features that have one."""
        return {key: label for key in features if (label := self._labels.get(key))}


def short_label(
    contexts: Sequence[Context], promoted: Sequence[tuple[str, float]], suppressed: Sequence[tuple[str, float]] = ()
) -> str:
    r"""Returns a label made of what was counted, no opinion: the tokens it is most active on, and those it promotes.

    >>> short_label([Context((" the", " keys"), (0.0, 2.0), 1)], [(" are", 1.5), (" were", 1.2), (" have", 1.0)])
    'on " keys"; promotes " are", " were"'
    """
    weights: dict[str, float] = {}
    for context in contexts:
        weights[context.token] = weights.get(context.token, 0.0) + context.activation
    on = sorted(weights, key=lambda token: -weights[token])[:2]
    parts = [f"on {_quoted(on)}"] if on else []
    if promoted:
        parts.append(f"promotes {_quoted([token for token, _ in promoted[:2]])}")
    return "; ".join(parts)


def _quoted(tokens: Iterable[str]) -> str:
    return ", ".join('"' + token.replace("\n", "\\n").replace("\t", "\\t") + '"' for token in tokens)
