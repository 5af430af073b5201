"""From what a user writes to dictionaries: `load_dictionary` asks each loader plugin in turn whether it knows the form."""

import os
from pathlib import Path
from typing import Any, NoReturn

from circuitsae.dictionaries import modules, saelens
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders.plugin import loaders
from circuitsae.errors import DictionaryError, InputError, UnknownNameError, near_matches


class SaelensLoader:
    """One dictionary of SAELens' registry, as `RELEASE/ID` (or `saelens://RELEASE/ID`); needs the extra `saelens`."""

    def matches(self, spec: str) -> bool:
        """Tells whether it begins with the name of a release, without importing SAELens."""
        return spec.startswith(saelens.SCHEME) or spec.partition("/")[0] in saelens.release_names()

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        """Fetches it; see `circuitsae.dictionaries.saelens.from_release`.

        Raises:
            MissingExtraError: sae_lens is not installed.
            UnknownNameError: There is no such release or id.
            FetchError: The download failed.
        """
        release, _, sae_id = spec.removeprefix(saelens.SCHEME).partition("/")
        return [saelens.from_release(release, sae_id, **options)]


def load_dictionary(spec: Any, **options: Any) -> list[Dictionary]:
    """Returns the dictionaries that `spec` stands for.

    Args:
        spec: A folder (or a folder of folders), `hf://ORG/NAME/PATH@REVISION`, `RELEASE/ID` of SAELens' registry, any
            other form that a loader plugin knows, a `Dictionary`, a SAELens object, or a plain torch module with W_enc
            and W_dec (`circuitsae.dictionaries.modules`).
        **options: Passed on to the loader.

    Raises:
        UnknownNameError: No loader knows the name; the message gives near matches.
        DictionaryError: Nothing has a name near it, or it is found and can't be used.
        FetchError: It is somewhere else and can't be fetched.
        InputError: `spec` is of none of these kinds.
    """
    if isinstance(spec, Dictionary):
        return [spec]
    if saelens.is_saelens_object(spec):
        return [saelens.from_object(spec, **options)]
    if modules.is_module(spec):
        return [modules.from_module(spec, **options)]
    if not isinstance(spec, (str, os.PathLike)):
        raise InputError(
            "A dictionary is given as a folder, a name, a Dictionary, a SAELens object, or a torch module with W_enc and "
            f"W_dec, not as {type(spec).__name__}."
        )
    text = os.fspath(spec)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    for loader in loaders():
        if loader.matches(text):
            return loader.load(text, **options)
    _raise_unknown(text)


def _raise_unknown(spec: str) -> NoReturn:
    """Looks for what was meant: a folder of a similar name beside it, or a release."""
    path = Path(spec).expanduser()
    parent = path.parent
    beside = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    known = [str(parent / name) for name in near_matches(path.name, beside)]
    releases = saelens.release_names()
    release, _, sae_id = spec.partition("/")
    known += [f"{near}/{sae_id}" if sae_id else near for near in near_matches(release, releases)]
    hint = "A dictionary is a folder with cfg.json and sae_weights.safetensors, or RELEASE/ID of SAELens' registry"
    hint += "." if releases else ", which needs sae_lens: pip install 'circuitsae[saelens]'."
    if not known:
        raise DictionaryError(f"There is no dictionary {spec!r}, and no name near it. {hint}")
    raise UnknownNameError("dictionary", spec, known, hint)
