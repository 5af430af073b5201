import json
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitsae.errors import CancelledError, FetchError
from circuitsae.presets.conversion import convert_gguf


@pytest.fixture(scope="module")
def converted(small_llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert_gguf(small_llama.gguf, folder)
    return folder


def test_the_converted_model_computes_what_the_original_does(small_llama: Any, converted: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    assert model.state_dict().keys() == small_llama.model.state_dict().keys()
    for name, weight in small_llama.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    tokens = torch.tensor([[1, 5, 9, 200, 17]])
    assert torch.equal(model(tokens).logits, small_llama.model(tokens).logits)


@pytest.mark.parametrize("text", ["When Mary gave 1732 drinks", " Mary", "naïve 東京\n\n 12", ""])
def test_the_converted_tokenizer_splits_as_the_original_does(small_llama: Any, converted: Path, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == small_llama.tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)


def test_both_lines_of_transformers_find_the_rotary_base(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50_000.0


def test_a_file_that_is_no_llama_in_gguf_is_refused(tmp_path: Path) -> None:
    import gguf

    (tmp_path / "text.gguf").write_text("not a model at all, whatever it is called")
    with pytest.raises(FetchError, match=r"text\.gguf is not a readable GGUF file"):
        convert_gguf(tmp_path / "text.gguf", tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.add_tokenizer_model("llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FetchError, match="architecture 'mamba' with a tokenizer of kind 'llama'; expected 'llama'"):
        convert_gguf(tmp_path / "other.gguf", tmp_path)


def test_progress_is_told_and_may_cancel(small_llama: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    convert_gguf(small_llama.gguf, tmp_path, lambda *now: told.append(now))
    assert told == [(n + 1, 20, "tensors converted") for n in range(20)]
    with pytest.raises(CancelledError):
        convert_gguf(small_llama.gguf, tmp_path, lambda *now: False)
