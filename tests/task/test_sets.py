"""Task sets: seeded, of one length in prompt and patch, one token an answer; a file's bad row costs that row alone."""

import json
import re
from pathlib import Path

import pytest
import torch

import circuitsae as cs
from circuitsae.errors import InputError, TaskError, UnknownNameError
from circuitsae.task.reading import read_tasks
from circuitsae.task.sets import describe_sets, task_set
from circuitsae.task.templates import TEMPLATES, Words
from circuitsae.task.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return cs.load("tiny").vocabulary


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_task_has_a_patch_of_its_length_and_answers_of_one_token(name: str, vocabulary: Vocabulary) -> None:
    tasks = task_set(name, vocabulary, n=40)
    assert len(tasks) == 40
    assert tasks.problems == ()
    unknown = vocabulary.tokenizer.unk_token_id
    for task in tasks:
        prepared = task.prepare(vocabulary)
        assert prepared.patch_tokens is not None
        assert len(prepared.tokens) == len(prepared.patch_tokens)
        assert prepared.tokens != prepared.patch_tokens
        assert unknown not in (*prepared.tokens, *prepared.patch_tokens)
        assert unknown not in prepared.metric.description["token_ids"].values()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_set_is_a_function_of_its_name_size_and_seed(name: str, vocabulary: Vocabulary) -> None:
    first = task_set(name, vocabulary, n=12, seed=3)
    assert task_set(name, vocabulary, n=12, seed=3) == first
    assert task_set(name, vocabulary, n=12, seed=4).records() != first.records()
    assert task_set(name, vocabulary, n=5, seed=3).records() == first.records()[:5]
    assert len({json.dumps(row) for row in first.records()}) == 12


def test_patch_prompts_turn_the_answer_round(vocabulary: Vocabulary) -> None:
    # An independent reading of the prompts, not the templates' own.
    for row in task_set("ioi", vocabulary, n=30).records():
        words = row["clean"].replace(",", "").split()
        names = [w for w in words[1:] if w[0].isupper()]
        assert len(names) == 3
        assert names.count(row["foil"].strip()) == 2
        assert names.count(row["answer"].strip()) == 1
        assert row["case"] == ("abba" if names[0] == row["answer"].strip() else "baba")
        patched = [w for w in row["patch"].replace(",", "").split()[1:] if w[0].isupper()]
        assert patched.count(row["answer"].strip()) == 2
    for row in task_set("greater-than", vocabulary, n=30).records():
        start, early = (int(re.findall(r"\d{4}", row[k])[0][2:]) for k in ("clean", "patch"))
        assert int(row["foil"]) <= start < int(row["answer"])
        assert early < int(row["foil"])
    assert set(task_set("ioi", vocabulary, n=30).cases) == {"abba", "baba"}


def test_tiny_answers_the_tasks_it_was_trained_on(vocabulary: Vocabulary) -> None:
    spliced = cs.load("tiny")
    for name in ("ioi", "agreement-rc", "greater-than"):
        right = 0
        for task in task_set(name, spliced, n=20):
            prepared = task.prepare(vocabulary)
            with torch.no_grad():
                logits = spliced.model(torch.tensor([prepared.tokens]), return_type="logits")
            right += bool(prepared.metric(logits[:, -1:]) > 0)
        assert right >= 17, name


def test_aligned_prompts_have_one_length_and_differ_from_the_patch_at_the_same_places(vocabulary: Vocabulary) -> None:
    for name in TEMPLATES:
        prepared = [t.prepare(vocabulary) for t in task_set(name, vocabulary, n=15, aligned=True)]
        assert len({len(p.tokens) for p in prepared}) == 1
        changed = {tuple(a != b for a, b in zip(p.tokens, p.patch_tokens or (), strict=True)) for p in prepared}
        assert len(changed) == 1, name


class _Letters:
    """A tokenizer of single letters: no answer is one token."""

    bos_token_id = None
    unk_token_id = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def decode(self, ids: list[int], **options: object) -> str:
        return "".join(map(chr, ids))


def test_a_vocabulary_without_the_words_is_told_so() -> None:
    letters = Vocabulary(_Letters(), 256)
    with pytest.raises(TaskError, match="lacks single-token words for the task set 'ioi'"):
        task_set("ioi", letters)
    with pytest.raises(TaskError, match="no tokenizer"):
        task_set("ioi", Vocabulary(None, 100))
    rows = describe_sets(letters)
    assert [row["name"] for row in rows] == list(TEMPLATES)
    assert all("problem" in row or "example" in row for row in rows)


def test_wrong_names_and_sizes_are_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ioi'"):
        task_set("io", vocabulary)
    with pytest.raises(InputError, match="at least one"):
        task_set("ioi", vocabulary, n=0)
    with pytest.raises(InputError, match="no vocabulary"):
        task_set("ioi", "tiny")


def test_a_small_world_gives_fewer_and_says_so(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("France", "Paris"), ("England", "London")]
    monkeypatch.setattr(Words, "pairs", lambda self, given: pairs)
    tasks = task_set("capitals", vocabulary, n=10)
    assert len(tasks) == 2
    assert tasks.problems == ("10 tasks were asked for; this vocabulary gave 2 different ones.",)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_written_set_is_read_back(suffix: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    tasks = task_set("ioi", vocabulary, n=6)
    path = tmp_path / f"tasks{suffix}"
    tasks.write(path)
    again = read_tasks(path, vocabulary)
    assert again.tasks == tasks.tasks
    assert again.cases == tasks.cases
    assert again.fingerprint == tasks.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bad_rows_are_reported_with_their_line_and_the_rest_goes_on(vocabulary: Vocabulary, tmp_path: Path) -> None:
    good = {"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is"}
    lines = [
        json.dumps(good),
        "{not json",
        "",
        json.dumps({**good, "patch": "The old key"}),
        json.dumps({k: v for k, v in good.items() if k != "foil"}),
        json.dumps({**good, "answer": 99999}),
        json.dumps([1, 2]),
        json.dumps({**good, "clean": {"a": 1}}),
        json.dumps({**good, "answer": True}),
        json.dumps(
            {"clean_prefix": "The boys", "patch_prefix": "The boy", "clean_answer": " are", "patch_answer": " is"}
        ),
        json.dumps({"clean": [1, 5, 6], "patch": [1, 5, 7], "answer": 8, "foil": 9}),
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(lines))
    tasks = read_tasks(path, vocabulary)
    assert [t.prompt for t in tasks] == ["The keys", "The boys", [1, 5, 6]]
    expected = ["line 2: it is not JSON", "line 4: The prompt has", "line 5: it has no 'foil'", "line 6: The token id 99999",
                "line 7: it is a list", "line 8: its 'clean'", "line 9: its 'answer'"]  # fmt: skip
    assert len(tasks.problems) == len(expected)
    for problem, start in zip(tasks.problems, expected, strict=True):
        assert problem.startswith(start)


def test_a_csv_with_quotes_and_bad_rows(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        'clean,patch,answer,foil\n"The keys","The key", are, is\n"When Mary, John","When John, Mary", Mary, John\n'
        "The keys,The key,, is\nThe keys\n"
    )
    tasks = read_tasks(path, vocabulary)
    assert [t.prompt for t in tasks] == ["The keys", "When Mary, John"]
    assert [p.split(":")[0] for p in tasks.problems] == ["line 4", "line 5"]


def test_files_that_are_no_task_set(vocabulary: Vocabulary, tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    with pytest.raises(InputError, match="can't be read"):
        read_tasks(missing, vocabulary)
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(InputError, match=r"ends in \.jsonl, \.json"):
        read_tasks(tmp_path / "x.txt", vocabulary)
    (tmp_path / "x.csv").write_text("clean,patch\na,b\n")
    with pytest.raises(InputError, match="no column 'answer' and no 'foil'"):
        read_tasks(tmp_path / "x.csv", vocabulary)
    (tmp_path / "x.jsonl").write_text('{"clean": "The keys"}\n')
    with pytest.raises(TaskError, match="no task that can be used: line 1"):
        read_tasks(tmp_path / "x.jsonl", vocabulary)
    (tmp_path / "y.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_tasks(tmp_path / "y.jsonl", vocabulary)
    with pytest.raises(InputError, match="ends in neither"):
        task_set("ioi", vocabulary, n=1).write(tmp_path / "x.txt")


def test_parts_of_a_set(vocabulary: Vocabulary) -> None:
    tasks = task_set("ioi", vocabulary, n=20)
    abba = tasks.of_case("abba")
    assert 0 < len(abba) < 20
    assert set(abba.cases) == {"abba"}
    assert tasks[:3].records() == tasks.records()[:3]
    assert tasks[0] is tasks.tasks[0]
    with pytest.raises(UnknownNameError, match="case"):
        tasks.of_case("abc")


def test_a_long_file_is_read_as_far_as_is_needed(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Rows behind the last task that is wanted are not even looked at."""
    good = {"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is"}
    path = tmp_path / "long.jsonl"
    path.write_text("{bad\n" + f"{json.dumps(good)}\n" * 2 + "{bad\n" * 50_000)
    tasks = read_tasks(path, vocabulary, n=2)
    assert len(tasks) == 2 and len(tasks.problems) == 1
    assert tasks.source == read_tasks(path, vocabulary).source


def test_a_character_that_splits_lines_elsewhere_splits_no_row(vocabulary: Vocabulary, tmp_path: Path) -> None:
    good = {"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is", "case": "a\u2028b\x85c"}
    path = tmp_path / "lines.jsonl"
    path.write_text(json.dumps(good, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_tasks(path, vocabulary).cases == (good["case"],)


@pytest.mark.parametrize("part", [{"clean": "The \ud800keys"}, {"answer": "\udfff"}, {"clean": None}, {"clean": [None]},
                                  {"clean": [10**400]}, {"answer": 1e308}, {"clean": [float("nan")]}])  # fmt: skip
def test_odd_values_are_problems_of_their_row(part: dict[str, object], vocabulary: Vocabulary, tmp_path: Path) -> None:
    good = {"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is"}
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(good | part) + "\n" + json.dumps(good))
    tasks = read_tasks(path, vocabulary)
    assert len(tasks) == 1 and tasks.problems[0].startswith("line 1: ")


@pytest.mark.parametrize("prompt", [None, 3, "a\udc80"])
def test_a_prompt_that_is_no_text_is_said_so(prompt: object, vocabulary: Vocabulary) -> None:
    with pytest.raises(TaskError, match=r"expected text or a list of token ids|lone surrogate"):
        vocabulary.encode(prompt)  # type: ignore[arg-type]


def test_half_a_character_in_a_case_is_written_and_read_back(vocabulary: Vocabulary, tmp_path: Path) -> None:
    row = {"clean": "The keys", "patch": "The key", "answer": " are", "foil": " is", "case": "a\ud800"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    tasks = read_tasks(tmp_path / "a.jsonl", vocabulary)
    tasks.write(tmp_path / "b.jsonl")
    tasks.write(tmp_path / "b.csv")
    assert read_tasks(tmp_path / "b.jsonl", vocabulary).cases == ("a\ud800",)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_rows_need_no_patch_prompt(suffix: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    path, again = tmp_path / f"x.{suffix}", tmp_path / f"again.{suffix}"
    row = {"clean": "The keys to the cabinet", "answer": " are", "foil": " is"}
    path.write_text(f"{json.dumps(row)}\n" if suffix == "jsonl" else f"{','.join(row)}\n{','.join(row.values())}\n")
    tasks = read_tasks(path, vocabulary)
    assert tasks[0].patch is None and not tasks.problems and not tasks.mostly_bad and tasks.records() == [row]
    tasks.write(again)
    assert read_tasks(again, vocabulary).tasks == tasks.tasks
