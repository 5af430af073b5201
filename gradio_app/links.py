"""Links that bring back what was on the screen: the state as JSON, compressed, in the address."""

import base64
import binascii
import json
import zlib
from typing import Any

from circuitsae.errors import InputError

MAX_BYTES = 256 * 1024


def encode_state(state: dict[str, Any]) -> str:
    """Returns a state as it stands after `?c=`: letters, digits, `-` and `_`.

    >>> decode_state(encode_state({"form": {"prompt": "The keys"}}))
    {'form': {'prompt': 'The keys'}}
    """
    packed = zlib.compress(json.dumps(state, separators=(",", ":"), allow_nan=False).encode(), 9)
    return base64.urlsafe_b64encode(packed).decode().rstrip("=")


def decode_state(text: str) -> dict[str, Any]:
    """Returns the state in a link, which may be a stranger's: plain data, of bounded size.

    Raises:
        InputError: It is damaged.
    """
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        reader = zlib.decompressobj()
        plain = reader.decompress(packed, MAX_BYTES)
        if not reader.eof:
            raise ValueError("it is cut off, or too long")
        state = json.loads(plain)
    except (ValueError, binascii.Error, zlib.error, RecursionError):
        raise InputError("The link is damaged and can't be restored; it may have been cut off.") from None
    if not isinstance(state, dict):
        raise InputError("The link is damaged and can't be restored; it may have been cut off.")
    return state
