"""A tiny configuration of every family of causal language models that TransformerLens has a bridge to.

`SIZES` are given wherever a family's configuration knows the name; what else one needs stands beside its name. Families
whose model code is not part of transformers can't be made here.
"""

from typing import Any

VOCABULARY, WIDTH, WINDOW = 50, 32, 32

SIZES: dict[str, Any] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "attention_hidden_size"), WIDTH),
    **dict.fromkeys(("lru_width", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "mamba_d_ssm"), WIDTH),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads", "num_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), WINDOW),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim", "sliding_window"), 4),
    **dict.fromkeys(("state_size", "time_step_rank", "mamba_d_state", "mamba_dt_rank", "ssm_state_size"), 4),
    **dict.fromkeys(("head_dim", "v_head_dim", "kv_lora_rank", "mamba_d_head", "mamba_head_dim"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 4),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size", "attention_window_size"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_groups"), 1),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    **dict.fromkeys(
        ("linear_key_head_dim", "linear_value_head_dim", "global_head_dim", "o_lora_rank", "index_head_dim"), 8
    ),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 2),
    "num_experts_per_tok": 2,
    "q_lora_rank": 12,
    "hidden_size_per_layer_input": 0,
    "vocab_size": VOCABULARY,
}


def _plain(names: str) -> dict[str, dict[str, Any]]:
    """Families that need nothing of their own."""
    return {name: {} for name in names.split()}


_LATENT = {"head_dim": 4, "num_key_value_heads": 4}
_HALF_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_HALF_CONVOLUTION = {"layer_types": ["conv", "full_attention"]}

DENSE: dict[str, dict[str, Any]] = {
    **_plain(
"Apertus Arcee BitNet Bloom CodeGen Cohere Cohere2 Ernie4_5 Exaone4 Falcon Gemma Gemma2 Gemma3 Gemma4 Glm Glm4 GPT2 "
        "GPTBigCode GPTJ GPTNeoX Granite HrmText HunYuanDenseV1 Jais2 Llama Ministral3 Mistral Mpt NanoChat Nemotron Olmo "
        "Olmo2 Olmo3 OpenAIGPT OPT Phi Phi3 Qwen2 Qwen3 SeedOss SmolLM3 StableLm Starcoder2 VaultGemma XGLM"
),
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "ModernBertDecoder": {**dict.fromkeys(("bos_token_id", "cls_token_id"), 1), "pad_token_id": 0,
                          **dict.fromkeys(("eos_token_id", "sep_token_id"), 2)},
    "Youtu": _LATENT,
}  # fmt: skip

EXPERTS: dict[str, dict[str, Any]] = {
    **_plain(
        "Afmoe DeepseekV4 Ernie4_5_Moe FlexOlmo Glm4Moe GptOss GraniteMoe JetMoe Laguna Llama4 MiniMaxM2 Mixtral Olmoe "
        "Qwen2Moe Qwen3Moe"
    ),
    "DeepseekV2": _LATENT,
    "DeepseekV3": {**_LATENT, "first_k_dense_replace": 1},
    "Glm4MoeLite": _LATENT,
    "GlmMoeDsa": _LATENT,
}

RECURRENT: dict[str, dict[str, Any]] = {
    **_plain(
"FalconH1 FalconMamba Mamba OlmoHybrid Rwkv"
),
    "Bamba": {"mamba_d_head": 16, "attn_layer_indices": [1]},
    "GraniteMoeHybrid": {
        "mamba_d_head": 16, "layer_types": ["mamba", "attention"], "position_embedding_type": "rope",
    },
    "Jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "Lfm2": _HALF_CONVOLUTION,
    "Lfm2Moe": {**_HALF_CONVOLUTION, "num_dense_layers": 1},
    "Mamba2": {"head_dim": 16},
    "NemotronH": {"layers_block_type": ["mamba", "attention"]},
    "Qwen3Next": _HALF_LINEAR,
    "Qwen3_5": _HALF_LINEAR,
    "Qwen3_5Moe": _HALF_LINEAR,
    "RecurrentGemma": {"block_types": ["recurrent", "attention"]},
    "Zamba2": {"layers_block_type": ["mamba", "hybrid"], "attention_hidden_size": 2 * WIDTH},
}  # fmt: skip

FAMILIES = {**DENSE, **EXPERTS, **RECURRENT}

SINGLE = ("XGLM",)
"""Families that compute in float32 only."""

_HEADS = {"GPT2": "GPT2LMHeadModel", "OpenAIGPT": "OpenAIGPTLMHeadModel"}


def class_name(family: str) -> str:
    """Returns what transformers calls a family's class."""
    return _HEADS.get(family, f"{family}ForCausalLM")


def configuration(family: str) -> Any:
    """Returns a family's tiny configuration."""
    import transformers

    kind: Any = getattr(transformers, class_name(family)).config_class
    aliases = getattr(kind, "attribute_map", {})
    known = {*kind().to_dict(), *aliases}
    sizes = {name: value for name, value in SIZES.items() if name in known}
    sizes = {name: value for name, value in sizes.items() if aliases.get(name) not in sizes}
    made = kind(**{**sizes, **{**FAMILIES}[family]})
    made._attn_implementation = made._experts_implementation = "eager"
    return made
