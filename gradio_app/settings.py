"""What an app may do: for the person at the same machine, or for the public."""

from dataclasses import dataclass

from circuitsae.presets import find_preset, is_present, list_presets, reference_of


@dataclass(frozen=True)
class Settings:
    """How an app is run.

    Attributes:
        preset: What is chosen at first.
        presets: What may be chosen.
        public: Whether strangers use it: shorter prompts, no uploads, only models that are there already.
        max_tokens: Tokens of a prompt at most.
        max_nodes: Nodes of a circuit at most.
        memory: Bytes that traced circuits may take; the least recently used ones are dropped.
        upload_bytes: Size of an uploaded circuit at most; 0 for no uploads.
        body_bytes: Size of a request's body at most; a circuit as a JSON string in it may take twice its own.
        deadline: Seconds that one piece of work may take.
    """

    preset: str
    presets: tuple[str, ...]
    public: bool = False
    max_tokens: int = 512
    max_nodes: int = 2048
    memory: int = 384 * 2**20
    upload_bytes: int = 32 * 2**20
    body_bytes: int = 64 * 2**20
    deadline: float = 900.0


def make_settings(preset: str | None, *, public: bool = False) -> Settings:
    """Returns the settings of an app whose first preset is named, or the best one that is there.

    Raises:
        UnknownNameError: No preset is called that.
    """
    known = list_presets()
    if preset is None:
        preset = next((p.name for p in known if p.name == "smollm2" and is_present(p)), "tiny")
    else:
        preset = reference_of(find_preset(preset))
    if not public:
        return Settings(preset, tuple(dict.fromkeys([preset, *(p.name for p in known)])))
    there = [p.name for p in known if p.name != preset and is_present(p) and not p.gated]
    return Settings(
        preset,
        tuple([preset, *there]),
        public=True,
        max_tokens=64,
        max_nodes=512,
        memory=256 * 2**20,
        upload_bytes=0,
        body_bytes=5 * 2**20,
        deadline=120.0,
    )
