"""Task files as others publish them: columns, ids, answers without their space, lists, datasets on the hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import circuitsae as cs
from circuitsae.errors import FetchError, InputError, TaskError
from circuitsae.task.reading import read_tasks
from circuitsae.task.vocabulary import Vocabulary

TOKENS = [
    "<bos>",
    "The",
    " keys",
    " key",
    " is",
    " are",
    "are",
    " was",
    " were",
    "A",
    "B",
    " in",
    " the",
    " year",
    "Mary",
]
TOKENS += [" Mary", " John", " and", " ", "John"] + [f"{n:02d}" for n in range(100)]


class Longest:
    """A tokenizer that takes the longest token at each place, with spaces before words as GPT-2's."""

    bos_token_id = 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        ids = []
        while text:
            fitting = [token for token in TOKENS if text.startswith(token)]
            if not fitting:
                raise TaskError(f"{text!r} has no token.")
            ids.append(TOKENS.index(max(fitting, key=len)))
            text = text[len(TOKENS[ids[-1]]) :]
        return {"input_ids": ids}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(TOKENS[i] for i in ids)


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary(Longest(), len(TOKENS))


def read(tmp_path: Path, vocabulary: Vocabulary, text: str, suffix: str = "csv") -> Any:
    path = tmp_path / f"t.{suffix}"
    path.write_text(text, encoding="utf-8")
    return read_tasks(path, vocabulary)


def test_eap_ig_with_token_ids(tmp_path: Path, vocabulary: Vocabulary) -> None:
    found = read(
        tmp_path,
        vocabulary,
        ",clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\n"
        "7,The keys,The key,The Mary,5,4\n8,The key,The keys,The John,4.0,5\n",
    )
    assert found.records() == [{"clean": "The keys", "patch": "The key", "answer": 5, "foil": 4}]
    assert found.problems == ("line 3: its 'correct_idx' is '4.0'; expected a token id.",)
    assert found.notes == ("The column 'corrupted_hard' is not used.",)


@pytest.mark.parametrize(("column", "year"), [("label", "52"), ("year", "1352")])
def test_greater_than_by_its_year(tmp_path: Path, vocabulary: Vocabulary, column: str, year: str) -> None:
    text = f"clean,corrupted,{column}\nThe year 1352 in the year 13,The year 1301 in the year 13,{year}\n"
    (task,) = read(tmp_path, vocabulary, text.replace("1352 in", "52 in").replace("1301 in", "01 in"))
    metric = task.metric
    assert metric.answer == tuple(f"{n:02d}" for n in range(53, 100))
    assert metric.foil == tuple(f"{n:02d}" for n in range(53))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_feature_circuits_rows_under_either_suffix(tmp_path: Path, vocabulary: Vocabulary, suffix: str) -> None:
    row = {"clean_prefix": "The keys", "patch_prefix": "The key", "clean_answer": " are", "patch_answer": " is"}
    lines = json.dumps(row | {"case": "plural"}) + "\n" + json.dumps(row) + "\n"
    found = read(tmp_path, vocabulary, lines, suffix)
    assert len(found) == 2 and found.cases == ("plural", "") and found.notes == found.problems == ()
    assert found[0].metric == cs.LogitDiff(" are", " is")
    assert read(tmp_path, vocabulary, json.dumps([row, row]), "json").tasks == found.tasks


def test_mibs_counterfactuals(tmp_path: Path, vocabulary: Vocabulary) -> None:
    names = {"indirect_object": "Mary", "subject": "John", "random_c": "x"}
    ioi = {
        "prompt": "The Mary and John", "template": "t", "metadata": names,
        "random_names_counterfactual": {"prompt": "The key and John"},
        "s2_io_flip_counterfactual": {"prompt": "The John and Mary"},
    }  # fmt: skip
    letters = {"label": ["A", "B"], "text": ["x", "y"]}
    choice = {
        "prompt": "The keys", "choices": letters, "answerKey": 1,
        "symbol_counterfactual": {"prompt": "The key", "choices": letters, "answerKey": 0},
    }  # fmt: skip
    sums = {"prompt": "The keys", "label": 12, "random_counterfactual": {"prompt": "The key", "label": 34}}
    found = read(tmp_path, vocabulary, "\n".join(map(json.dumps, (ioi, choice, sums))), "jsonl")
    assert found.problems == ()
    assert [(r["patch"], r["answer"], r["foil"]) for r in found.records()] == [
        ("The John and Mary", " Mary", " John"),
        ("The key", "B", "A"),
        ("The key", "12", "34"),
    ]
    assert "The patch prompt is the s2_io_flip_counterfactual (1 of 3 tasks)." in found.notes


def test_an_answer_is_tried_with_and_without_its_space(tmp_path: Path, vocabulary: Vocabulary) -> None:
    found = read(tmp_path, vocabulary, "clean,patch,answer,foil\nThe,The,was,is\nThe,The,Mary, John\nThe,The,x, is\n")
    assert [(r["answer"], r["foil"]) for r in found.records()] == [(" was", " is"), ("Mary", " John")]
    assert found.notes == (
        "Answers that are one token only with a leading space, or without, were taken so (1 of 2 tasks).",
        "Answers without a leading space were taken as they stand; with one, they are other tokens (1 of 2 tasks).",
    )
    assert len(found.problems) == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_ids_and_several_answers_are_written_and_read_back(tmp_path: Path, vocabulary: Vocabulary, suffix: str) -> None:
    rows = [
        {"clean": [1, 2], "patch": [1, 3], "answer": 5, "foil": 4},
        {"clean": "The keys", "patch": "The key", "answer": [" are", " were"], "foil": [4, 7]},
        {"clean": "The keys", "patch": "The key", "answer": 5, "foil": "12"},
    ]
    found = read(tmp_path, vocabulary, "\n".join(map(json.dumps, rows)), "jsonl")
    assert found.records() == rows
    found.write(tmp_path / f"again.{suffix}")
    again = read_tasks(tmp_path / f"again.{suffix}", vocabulary)
    assert again.records() == rows and again.tasks == found.tasks and again.fingerprint == found.fingerprint


def test_ids_in_a_table(tmp_path: Path, vocabulary: Vocabulary) -> None:
    found = read(tmp_path, vocabulary, 'clean,patch,answer,foil\n"[1, 2]","[1, 3]",5,4\n')
    assert found.records() == [{"clean": [1, 2], "patch": [1, 3], "answer": 5, "foil": 4}]


def test_a_parquet_file(tmp_path: Path, vocabulary: Vocabulary) -> None:
    rows = [{"clean": "The keys", "patch": "The key", "answer": [" are", " were"], "foil": [" is", " was"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert read_tasks(tmp_path / "t.parquet", vocabulary).records() == rows
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="no Parquet file"):
        read_tasks(tmp_path / "bad.parquet", vocabulary)


def test_a_file_of_a_dataset_on_the_hub(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.jsonl").write_text('{"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is"}')
    asked: list[tuple[Any, ...]] = []

    def download(repository: str, path: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repository, path, repo_type, revision))
        return str(tmp_path / path)

    files = ["README.md", "train.jsonl"]
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_, **__: files)
    found = read_tasks("hf://datasets/org/name/train.jsonl@v1", vocabulary)
    assert len(found) == 1 and found.source["place"] == "hf://datasets/org/name/train.jsonl@v1"
    assert read_tasks("hf://datasets/org/name", vocabulary).tasks == found.tasks
    assert asked == [("org/name", "train.jsonl", "dataset", "v1"), ("org/name", "train.jsonl", "dataset", None)]
    files.append("test.jsonl")
    with pytest.raises(InputError, match=r"2 task files; say which: train\.jsonl, test\.jsonl"):
        read_tasks("hf://datasets/org/name", vocabulary)

    def fails(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    with pytest.raises(FetchError, match=r"The hub does not give hf://datasets/org/name/x\.csv"):
        read_tasks("hf://datasets/org/name/x.csv", vocabulary)
    for wrong in ("hf://datasets/name", "hf://datasets/org/name/x.txt"):
        with pytest.raises(InputError):
            read_tasks(wrong, vocabulary)


def test_white_space_is_a_prompt_where_it_is_tokens(vocabulary: Vocabulary) -> None:
    assert vocabulary.encode("  ") == [0, 18, 18]
    with pytest.raises(TaskError, match="The prompt is empty"):
        vocabulary.encode("")


def test_an_answer_of_several_tokens_leads_to_the_metric_for_it(vocabulary: Vocabulary) -> None:
    with pytest.raises(TaskError, match=r"is 2 tokens.* ask for the metric 'loss', continuation ' Mary John'"):
        vocabulary.token_id(" Mary John")
    task = cs.Task("The Mary John", metric=cs.Loss(" Mary John"))
    assert task.prepare(Vocabulary(Longest(), len(TOKENS), prepend_bos=False)).tokens == (1, 15, 16)


@dataclass(frozen=True)
class Gap:
    """A metric of a plugin whose resolve gives a plain function."""

    name: ClassVar[str] = "gap"
    token: int = 3
    wrong: bool = False

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> Any:
        return 3 if self.wrong else lambda logits: logits[:, -1, self.token] - logits[:, -1].mean(-1)


def test_resolve_may_give_a_function_of_the_logits(vocabulary: Vocabulary) -> None:
    bound = cs.Task("The keys", metric=Gap()).prepare(vocabulary).metric
    logits = torch.arange(2 * 3 * 5, dtype=torch.float64).reshape(2, 3, 5)
    assert bound(logits).tolist() == [1.0, 1.0]
    assert bound.description == {"name": "gap", "token": 3, "wrong": False, "description": "gap"}
    with pytest.raises(TaskError, match=r"The metric 'gap' resolves to int; expected a BoundMetric"):
        cs.Task("The keys", metric=Gap(wrong=True)).prepare(vocabulary)
