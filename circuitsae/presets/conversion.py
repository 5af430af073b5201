"""Converts a Llama model in GGUF, llama.cpp's file format, to the folder that transformers reads.

The weights are dequantised to float32, tensor by tensor. Done here and not by transformers because its releases differ:
5.x writes tokenizers that 4.x can't read, leaves the splitting of digits out of the tokenizer, and needs accelerate.

Sources: the names and the order of query and key rows in llama.cpp's `convert_hf_to_gguf.py` (`LlamaModel`), undone
here; dequantisation by the `gguf` package, which is llama.cpp's own.
"""

import json
from pathlib import Path
from typing import Any

from einops import rearrange

from circuitsae.errors import FetchError
from circuitsae.progress import Progress, report

_BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3  # token_type of special tokens


def convert_gguf(path: Path, folder: Path, progress: Progress | None = None) -> None:
    """Writes config.json, model.safetensors (float32), tokenizer.json and tokenizer_config.json into `folder`.

    Raises:
        FetchError: The file is not GGUF, or holds something other than a Llama model with a byte-level BPE tokenizer.
        CancelledError: `progress` returned `False`.
    """
    import gguf
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        raise FetchError(f"{path.name} is not a readable GGUF file: {error}") from error
    fields = _Fields(path, reader)
    architecture, tokenizer = fields["general.architecture"], fields["tokenizer.ggml.model"]
    if (architecture, tokenizer) != ("llama", "gpt2"):
        raise FetchError(
            f"{path.name} holds a model of architecture {architecture!r} with a tokenizer of kind {tokenizer!r}; "
            "expected 'llama' with 'gpt2'."
        )
    heads, kv_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    weights: dict[str, Any] = {}
    for done, tensor in enumerate(reader.tensors):
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32", copy=False)
        stem = tensor.name.removesuffix(".weight")
        part = stem.rpartition(".")[2]
        if part in ("attn_q", "attn_k"):
            weight = _unpermuted(weight, heads if part == "attn_q" else kv_heads)
        weights[_hf_name(path, stem)] = weight
        report(progress, done + 1, len(reader.tensors), "tensors converted")
    config = _config(fields, weights)
    try:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # the disk is full, and the like
        raise FetchError(f"The converted model can't be written to {folder.parent}: {error}.") from error
    _write_json(folder / "config.json", config)
    _write_tokenizer(fields, folder)


class _Fields:
    """The file's metadata by key."""

    def __init__(self, path: Path, reader: Any) -> None:
        self.path, self.reader = path, reader

    def __getitem__(self, key: str) -> Any:
        field = self.reader.get_field(key)
        if field is None:
            raise FetchError(f"{self.path.name} lacks the field {key!r}, which the conversion needs.")
        return field.contents()

    def get(self, key: str, default: Any = None) -> Any:
        return default if self.reader.get_field(key) is None else self[key]


def _hf_name(path: Path, stem: str) -> str:
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.weight"
    kind, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if kind != "blk" or part not in _BLOCK:
        raise FetchError(f"{path.name} holds a tensor {stem!r}, which a Llama model has no place for.")
    return f"model.layers.{int(layer)}.{_BLOCK[part]}.weight"


def _unpermuted(weight: Any, heads: int) -> Any:
    """llama.cpp interleaves the two halves that rotary embedding pairs; transformers keeps them apart."""
    return rearrange(weight, "(head pair half) column -> (head half pair) column", head=heads, half=2).copy()


def _config(fields: _Fields, weights: dict[str, Any]) -> dict[str, Any]:
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    theta = float(fields["llama.rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "head_dim": width // heads,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": float(fields["llama.attention.layer_norm_rms_epsilon"]),
        # transformers 4 reads the first of these two, 5 the second
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": "float32",
        "vocab_size": int(weights["model.embed_tokens.weight"].shape[0]),
    }


def _write_tokenizer(fields: _Fields, folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    bytes_to_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if fields.get("tokenizer.ggml.pre") == "smollm":
        bytes_to_words = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_to_words])
    tokenizer.pre_tokenizer = bytes_to_words
    tokenizer.decoder = decoders.ByteLevel()
    special = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, field in (names | {"pad_token": "padding_token_id"}).items():
        number = fields.get(f"tokenizer.ggml.{field}")
        if number is not None:
            config[name] = words[number]
    config["model_max_length"] = fields["llama.context_length"]
    if template := fields.get("tokenizer.chat_template"):
        config["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
