"""Hook points from the names that other tools give to a model's parts."""

import re

from circuitsae.errors import DictionaryError

_LAYER = r"(?:layers?|h|blocks?)[._]?"
_RULES = (
    (r"(?:^|/)(?:embed(?:_tokens|_in|ding)?|wte)(?:$|/)", "hook_embed"),
    (r"resid(?:ual)?_mid\w*?" + _LAYER + r"(\d+)", "blocks.{}.hook_resid_mid"),
    (r"resid(?:ual)?_pre\w*?" + _LAYER + r"(\d+)", "blocks.{}.hook_resid_pre"),
    (r"resid(?:ual)?(?:_post|_out)?_?" + _LAYER + r"(\d+)", "blocks.{}.hook_resid_post"),
    (r"(?:attn|attention)(?:_out)?_?" + _LAYER + r"(\d+)", "blocks.{}.hook_attn_out"),
    (r"mlp(?:_out)?_?" + _LAYER + r"(\d+)", "blocks.{}.hook_mlp_out"),
    (_LAYER + r"(\d+)[._](?:self_attn|attn|attention)$", "blocks.{}.hook_attn_out"),
    (_LAYER + r"(\d+)[._]mlp$", "blocks.{}.hook_mlp_out"),
    (_LAYER + r"(\d+)$", "blocks.{}.hook_resid_post"),
)


def hook_of(name: str) -> str | None:
    """Returns the hook point that a module's or folder's name means, or `None`.

    Example:
        >>> hook_of("resid_post_layer_12"), hook_of("mlp_out_layer3"), hook_of("embed")
        ('blocks.12.hook_resid_post', 'blocks.3.hook_mlp_out', 'hook_embed')
        >>> hook_of("gpt_neox.layers.4.mlp"), hook_of("layers.7"), hook_of("trainer_0")
        ('blocks.4.hook_mlp_out', 'blocks.7.hook_resid_post', None)
    """
    for pattern, hook in _RULES:
        if match := re.search(pattern, name):
            return hook.format(int(match[1])) if match.groups() else hook
    return None


def hook_in_layer(name: object, layer: int, origin: str) -> str:
    """Returns a layer's hook point from a name that is meant within a block (`ln2.hook_normalized`).

    Raises:
        DictionaryError: It is no name of a hook point.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]*(\{layer\}[A-Za-z0-9_.]*)?", name) or not name:
        raise DictionaryError(f"{origin} names {name!r:.80} as a hook point; expected a name such as hook_resid_mid.")
    full = name.replace("{layer}", str(layer))
    return full if full != name or name.startswith("blocks.") else f"blocks.{layer}.{name}"
