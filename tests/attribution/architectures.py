"""Tiny random models of each architecture, made from a configuration, as a TransformerBridge in float64."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from circuitsae.dictionaries.base import Dictionary
from circuitsae.model.spliced import SplicedModel

N_LAYERS, D_MODEL, D_MLP, D_VOCAB, D_SAE, N_CTX = 3, 24, 32, 50, 40, 32
TOKENS = [3, 14, 15, 9, 2, 6, 5, 35, 8]
TOKENIZER = Path(__file__).parents[2] / "circuitsae" / "presets" / "tiny" / "model"


def config(name: str) -> Any:
    """LayerNorm and biases (gpt2), RMS norms, rotary and grouped queries (llama), post-norms (gemma2), parallel (neox),
    one matrix of gate and up (phi3), experts (mixtral); others stand for families where something is not what it seems."""
    import transformers

    sizes: dict[str, Any] = {
        "num_hidden_layers": N_LAYERS,
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_attention_heads": 4,
        "vocab_size": D_VOCAB,
        "max_position_embeddings": N_CTX,
    }
    made = {
        "gpt2": lambda: transformers.GPT2Config(
            n_layer=N_LAYERS, n_embd=D_MODEL, n_head=4, n_inner=D_MLP, vocab_size=D_VOCAB, n_positions=N_CTX
        ),
        "llama": lambda: transformers.LlamaConfig(**sizes, num_key_value_heads=2),
        "gemma2": lambda: transformers.Gemma2Config(
            **sizes, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=4
        ),
        "phi3": lambda: transformers.Phi3Config(**sizes, num_key_value_heads=2, pad_token_id=0),
        "mixtral": lambda: transformers.MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=4),
        "neox": lambda: transformers.GPTNeoXConfig(**sizes, use_parallel_residual=True),
        "opt": lambda: transformers.OPTConfig(
            num_hidden_layers=N_LAYERS, hidden_size=D_MODEL, ffn_dim=D_MLP, num_attention_heads=4, vocab_size=D_VOCAB,
            max_position_embeddings=N_CTX, word_embed_proj_dim=D_MODEL,
        ),
        "gptj": lambda: transformers.GPTJConfig(
            n_layer=N_LAYERS, n_embd=D_MODEL, n_head=4, n_inner=D_MLP, vocab_size=D_VOCAB, n_positions=N_CTX, rotary_dim=4
        ),
        "llama4": lambda: transformers.Llama4TextConfig(
            **sizes, num_key_value_heads=2, head_dim=8, intermediate_size_mlp=D_MLP, num_local_experts=2, pad_token_id=0
        ),
        "olmo": lambda: transformers.OlmoConfig(**sizes),
        "olmo2": lambda: transformers.Olmo2Config(**sizes),
        "bitnet": lambda: transformers.BitNetConfig(**sizes, num_key_value_heads=2, pad_token_id=0),
        "deepseek3": lambda: transformers.DeepseekV3Config(
            **sizes, num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=4,
            v_head_dim=8, first_k_dense_replace=N_LAYERS,
        ),
        "falcon-h1": lambda: transformers.FalconH1Config(
            **sizes, num_key_value_heads=2, mamba_d_ssm=48, mamba_n_heads=6, mamba_d_head=8, mamba_n_groups=1,
            mamba_d_state=4, mamba_chunk_size=8,
        ),
        "mamba": lambda: transformers.MambaConfig(
            vocab_size=D_VOCAB, hidden_size=D_MODEL, state_size=4, num_hidden_layers=N_LAYERS, time_step_rank=4
        ),
        "nanochat": lambda: transformers.NanoChatConfig(**sizes, num_key_value_heads=2),
    }[name]()  # fmt: skip
    made._attn_implementation = made._experts_implementation = "eager"
    return made


def bridge(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model whose every weight, norms and biases included, is random."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = config(name)
    torch.manual_seed(0)
    hf_model = AutoModelForCausalLM.from_config(made, dtype=dtype, attn_implementation="eager").eval()
    made.architectures = [type(hf_model).__name__]
    with torch.no_grad():
        for parameter in hf_model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    for module in hf_model.modules():
        if "RMSNorm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            module.forward = _rms_norm(module, offset=name == "gemma2")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER, local_files_only=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(
            folder, hf_model=hf_model, tokenizer=tokenizer, dtype=dtype, device="cpu"
        )
    model.requires_grad_(False)
    return model


def _rms_norm(module: Any, offset: bool) -> Any:
    """transformers computes these norms in float32 even in a float64 model; TransformerLens, once hooked, does not."""
    eps = getattr(module, "variance_epsilon", None) or module.eps

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (module.weight + offset)

    return forward


def dictionary(
    hook_in: str, hook_out: str | None = None, *, seed: int = 0, skip: bool = False, width: int = D_MODEL, **cfg: Any
) -> Dictionary:
    """A random SAE, or a transcoder where it writes elsewhere, about a third of its features active; an SAE has settings `cfg`."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3

    tensors = {
        "W_enc": random(width, D_SAE),
        "W_dec": random(D_SAE, width),
        "b_enc": random(D_SAE) - 0.3,
        "b_dec": random(width),
    }
    if hook_out is None:
        return Dictionary.from_tensors(architecture="standard", hook_in=hook_in, tensors=tensors, **cfg)
    if skip:
        tensors["W_skip"] = random(width, width)
    architecture = "skip_transcoder" if skip else "transcoder"
    return Dictionary.from_tensors(architecture=architecture, hook_in=hook_in, hook_outs=hook_out, tensors=tensors)


def with_transcoders(model: Any, layers: range = range(N_LAYERS), *, skip: bool = False) -> SplicedModel:
    """A model with a transcoder at every layer, from the MLP's input to its output."""
    return SplicedModel(
        model,
        [dictionary(f"blocks.{n}.mlp.hook_in", f"blocks.{n}.hook_mlp_out", seed=n, skip=skip) for n in layers],
        prepend_bos=False,
    )
