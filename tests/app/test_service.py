"""The service under the page: forms, traces, interventions, limits, memory; no browser and no server."""

import asyncio
import gc
import json
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.errors import CancelledError, CircuitsaeError, InputError, NotFiniteError

pytest.importorskip("gradio", reason="the app needs the extra 'app'")

from circuitsae.labels import Context, Description, Mapped
from gradio_app import view
from gradio_app.actions import Actions
from gradio_app.cards import card_sections, logit_tokens
from gradio_app.exporting import FORMATS, export_files, python_program
from gradio_app.forms import Form, one_token, read_form
from gradio_app.jobs import Done, Jobs, owner_of
from gradio_app.links import decode_state, encode_state
from gradio_app.operations import OPERATIONS, Asked, read_arguments, read_edits
from gradio_app.service import Models, Service, _asked
from gradio_app.settings import Settings, make_settings
from gradio_app.store import Entry, Store

PROMPT = "The keys to the cabinet"
FORM = Form("tiny", PROMPT, " are", " is", nodes=48)


def quiet(done: int, total: int, what: str) -> bool:
    return True


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(make_settings("tiny"))


@pytest.fixture(scope="module")
def entry(service: Service) -> Entry:
    return service.trace(FORM, quiet)


def test_a_trace_is_the_librarys(service: Service, entry: Entry) -> None:
    spliced = service.models.spliced("tiny")
    task = cs.Task(PROMPT, metric=cs.LogitDiff(" are", " is"))
    wanted = cs.trace(spliced, task, method="attribution-patching", max_nodes=48)  # what is painted first
    assert set(entry.circuit.graph.edges) == set(wanted.graph.edges)
    assert entry.circuit.graph.graph["metric_value"] == wanted.graph.graph["metric_value"]
    assert entry.form == FORM and service.store.get(entry.id) is entry


@pytest.fixture(scope="module")
def broken() -> Service:
    """A service whose model has a weight that is NaN."""
    service = Service(make_settings("tiny"))
    weight = next(service.models.spliced("tiny").model.blocks[1].mlp.parameters())
    weight.data = torch.full_like(weight, torch.nan)
    return service


@pytest.mark.parametrize("name", OPERATIONS)
def test_numbers_that_are_not_finite_are_a_sentence(broken: Service, name: str) -> None:
    node = "blocks.1.hook_resid_post/3@2"
    given = {"edits": [{"key": node, "op": "ablate"}], "keys": [node]}
    with pytest.raises(NotFiniteError, match=r"its weight '.*mlp.*' \(float32\) is not"):
        found = broken.compute(name, FORM, given, quiet)
        list(found if OPERATIONS[name].streams else ())


def test_the_likeliest_token_of_a_broken_model_is_a_sentence(broken: Service) -> None:
    with pytest.raises(NotFiniteError, match="its weight"):
        broken.trace(Form("tiny", PROMPT, "", ""), quiet)


def test_an_intervention_is_the_librarys(service: Service, entry: Entry) -> None:
    feature, other = entry.circuit.strongest(2, kind="feature")
    error = entry.circuit.errors[0] if entry.circuit.errors else "token@2"
    edits = [
        {"key": feature, "op": "scale", "value": 0.5},
        {"key": other, "op": "ablate"},
        {"key": error, "op": "ablate"},
    ]
    found = service.ask("intervene", entry.id, {"edits": edits, **{"errors": "frozen"}}, quiet)
    wanted = cs.intervene(
        service.models.spliced("tiny"),
        cs.Task(PROMPT, metric=cs.LogitDiff(" are", " is")),
        [cs.Scale(feature, 0.5), cs.Ablate(other), cs.Ablate(error)],
        errors="frozen",
        circuit=entry.circuit,
    )
    assert found["metric_after"] == pytest.approx(wanted.metric_after, abs=1e-5)
    assert found["metric_before"] == pytest.approx(wanted.metric_before, abs=1e-5)
    after = dict(zip(entry.keys, found["after"], strict=True))
    assert after[other] == 0
    for key, value in wanted.activations.items():
        assert after[key] == pytest.approx(value, rel=1e-3, abs=1e-4)
    tokens = {text: (before, now) for text, before, now, *_ in found["next"]}
    text, p = wanted.top_tokens(1)[0]
    assert tokens[text][1] == pytest.approx(p, rel=1e-3)
    json.dumps(found, allow_nan=False)


def test_measured_effects_are_those_of_ablation(service: Service, entry: Entry) -> None:
    keys = [*entry.circuit.strongest(11, kind="feature"), *entry.circuit.errors[:2], "token@2"]
    parts = list(service.ask("measure", entry.id, {"keys": keys}, quiet))
    found = {key: value for part in parts for key, value in part["values"].items()}
    assert [part["done"] for part in parts] == [0, 8, len(keys)] and parts[0]["total"] == len(keys)
    assert list(sorted(found)) == sorted(keys) and len(parts) > 1
    for key in keys[:3]:
        alone = service.ask("intervene", entry.id, {"edits": [{"key": key, "op": "ablate"}]}, quiet)
        assert found[key] == pytest.approx(alone["metric_after"] - alone["metric_before"], abs=1e-4)


def test_faithfulness_is_one_of_all_nodes_and_nought_of_none(service: Service, entry: Entry) -> None:
    def asked(keys: list[str], errors: bool) -> dict[str, Any]:
        return service.ask("faithfulness", entry.id, {"keys": keys, "errors": errors}, quiet)

    task = cs.Task(PROMPT, metric=cs.LogitDiff(" are", " is"))
    records = list(cs.node_effects(service.models.spliced("tiny"), task).records(("feature", "error")))
    for errors in (True, False):
        found = asked([r["node"] for r in records if errors or r["kind"] == "feature"], errors)
        assert found["faithfulness"] == pytest.approx(1, abs=1e-4) and found["size"] == found["pool"]
        assert found["random"] == pytest.approx([1] * 5, abs=1e-4)
    found = asked(entry.circuit.strongest(40, kind="feature"), False)
    assert found["size"] == 40 and len(set(found["random"])) == 5
    assert found["metric"] == pytest.approx(found["empty"] + found["faithfulness"] * (found["full"] - found["empty"]))
    with pytest.raises(InputError, match="expected features"):
        asked(["token@1"], False)


def test_a_continuation_without_edits_is_greedy_decoding(service: Service, entry: Entry) -> None:
    strongest = entry.circuit.strongest(1, kind="feature")[0]
    edits = [{"key": strongest, "op": "ablate"}]
    found = service.ask("continuation", entry.id, {"edits": edits}, quiet)
    model, vocabulary = service.models.spliced("tiny").model, service.models.spliced("tiny").vocabulary
    import torch

    ids = vocabulary.encode(PROMPT)
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert found["before"][:3] == vocabulary.strings(ids[-3:])
    assert 0 < len(found["after"]) <= 12 and 3 <= len(found["before"]) <= 12


def test_two_prompts_become_one_graph(service: Service, entry: Entry) -> None:
    union = service.compare(entry.id, "The key to the cabinet", quiet)
    where = union.colours[0]["values"]
    other = cs.trace(
        service.models.spliced("tiny"),
        cs.Task("The key to the cabinet", metric=cs.LogitDiff(" are", " is")),
        method="attribution-patching",
        max_nodes=48,
    )
    first = set(entry.circuit.graph)
    assert set(union.circuit.graph) == first | set(other.graph)
    assert {key for key, place in where.items() if place == 0} == first & set(other.graph)
    assert {key for key, place in where.items() if place == 2} == set(other.graph) - first
    assert union.circuit.graph.graph["tokens"][2] == " keys/ key"
    with pytest.raises(InputError, match="Nothing can be measured"):
        service.ask("intervene", union.id, {"edits": []}, quiet)
    shared = next(key for key, place in where.items() if place == 0 and key in union.circuit.features)
    node = union.circuit[shared]
    assert node["effect_a"] == pytest.approx(entry.circuit[shared]["effect"], rel=1e-4)
    assert node["activation_b"] == pytest.approx(other[shared]["activation"], rel=1e-4)
    with pytest.raises(InputError, match="expected as many"):
        service.compare(entry.id, "The old key to the cabinet", quiet)


def test_an_empty_answer_is_the_likeliest_and_a_missing_space_is_put_in(service: Service) -> None:
    entry = service.trace(Form("tiny", PROMPT, "", "", nodes=16), quiet)
    assert entry.form is not None
    assert entry.form.answer == entry.circuit.graph.graph["top_tokens"][0][0]
    vocabulary = service.models.spliced("tiny").vocabulary
    assert one_token("are", vocabulary, "answer") == " are"


@pytest.mark.parametrize(
    ("given", "field", "text"),
    [
        ({"prompt": "   "}, "prompt", "empty"),
        ({"answer": "are is"}, "answer", "The answer 'are is' is"),
        ({"foil": "is are"}, "foil", "The foil 'is are' is 2 tokens"),
        ({"foil": "are"}, "foil", "both 'are'"),
        ({"patch": "The key"}, "patch", "expected as many"),
        ({"prompt": "the " * 600}, "prompt", "tokens long"),
        ({"preset": "tinny"}, "preset", "did you mean 'tiny'"),
        ({"prompt": 7}, "preset", "expected str"),
    ],
)
def test_each_bad_field_is_said_in_a_sentence(service: Service, given: dict[str, Any], field: str, text: str) -> None:
    service.models.spliced("tiny")
    found = service.problems(FORM.as_dict() | given)
    assert list(found) == [field] and text in found[field]
    with pytest.raises(CircuitsaeError):
        service.trace(read_form(FORM.as_dict() | given, service.settings), quiet)


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ("ablate", "a list"),
        ([{"op": "ablate"}], "no intervention"),
        ([{"key": "token@1", "op": "explode"}], "explode"),
        ([{"key": "token@1", "op": "scale", "value": "much"}], "needs a number"),
        ([{"key": "token@1", "op": "scale", "value": float("nan")}], "needs a number"),
        ([{"key": "nowhere/3@1", "op": "ablate"}], "nowhere"),
        ([{"key": "metric", "op": "ablate"}], "metric"),
    ],
)
def test_bad_interventions_are_said_in_a_sentence(service: Service, entry: Entry, edits: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        service.ask("intervene", entry.id, {"edits": edits}, quiet)


def test_arguments_are_read_by_their_types() -> None:
    kind = OPERATIONS["faithfulness"].arguments
    assert read_arguments(kind, {"keys": ["a"], "seq": 3, "errors": None}) == kind(["a"])
    for given, text in (
        ({}, "missing: 'keys'"),
        ({"keys": "a"}, "expected a list"),
        ({"keys": [], "errors": "yes"}, "expected true or false"),
    ):
        with pytest.raises(InputError, match=text):
            read_arguments(kind, given)
    with pytest.raises(InputError, match="'thawed'"):
        read_arguments(OPERATIONS["intervene"].arguments, {"edits": [], "errors": "thawed"})
    with pytest.raises(InputError, match="needs a number"):
        read_edits([{"key": "token@1", "op": "set", "value": 10**400}])


def test_a_trace_and_what_is_asked_of_it_share_one_session(service: Service, entry: Entry) -> None:
    assert entry.form is not None
    service.ask("measure", entry.id, {"keys": [entry.circuit.strongest(1)[0]]}, quiet)
    _, session = service.models._session(_asked(entry), quiet)
    before = dict(session.passes)
    again = service.trace(entry.form, quiet)
    assert again.circuit.graph.graph["metric_value"] == entry.circuit.graph.graph["metric_value"]
    # the tape of the gradients and nothing else: the clean run was there
    assert {kind: session.passes[kind] - count for kind, count in before.items()} == {"forward": 1, "backward": 1}


def test_read_edits_gives_the_librarys_own() -> None:
    given = [{"key": "a/1@2", "op": op, "value": 2} for op in ("ablate", "scale", "set", "add")]
    assert read_edits(given) == [cs.Ablate("a/1@2"), cs.Scale("a/1@2", 2), cs.Set("a/1@2", 2), cs.Add("a/1@2", 2)]


def test_the_card_names_tokens_that_the_decoder_row_promotes(service: Service, entry: Entry) -> None:
    key = entry.circuit.strongest(1, kind="feature")[0]
    sections = {section["title"].split(",")[0]: section for section in service.card(entry.id, key)}
    assert {"Promotes", "Suppresses"} <= set(sections)
    assert all(value > 0 for _, value in sections["Promotes"]["tokens"])
    assert all(value < 0 for _, value in sections["Suppresses"]["tokens"])
    node = entry.circuit[key]
    promoted, _ = logit_tokens(service.models.spliced("tiny"), node["site"], node["index"])
    # A store's order takes the last normalisation in, which moves all but the clearest.
    assert promoted[0][0] in [text for text, _ in sections["Promotes"]["tokens"]]
    assert service.card(entry.id, "token@1") == [] and service.card(entry.id, "no such node") == []


def test_the_python_program_gives_what_is_on_the_screen(service: Service, entry: Entry) -> None:
    key = entry.circuit.strongest(1, kind="feature")[0]
    edits = [{"key": key, "op": "scale", "value": 0.25}]
    shown = {"edits": edits, "options": {"errors": "frozen"}, "state": {"pins": [key, "gone"]}}
    program = python_program(entry.circuit, entry.form, shown)
    names: dict[str, Any] = {"print": lambda *args: None}
    exec(program, names)
    found = service.ask("intervene", entry.id, {"edits": edits, **{"errors": "frozen"}}, quiet)
    assert names["result"].metric_after == pytest.approx(found["metric_after"], abs=1e-5)
    assert set(names["circuit"].graph) == set(entry.circuit.graph) and list(names["pinned"]) == [key]


def test_every_format_is_written_and_the_page_holds_the_interventions(entry: Entry) -> None:
    key = entry.circuit.strongest(1)[0]
    shown = {"state": {"pins": [key]}, "note": "Interventions: one </script>", "overlay": {"marks": []}, "edits": []}
    for format in FORMATS:
        files = export_files(entry.circuit, format, entry.form, shown)
        assert files and all(text and name.startswith("the-keys-to-the-cabinet") for name, text in files.items())
    page = export_files(entry.circuit, "html", entry.form, shown)["the-keys-to-the-cabinet.html"]
    assert "one \\u003c/script\\u003e" in page
    saved = export_files(entry.circuit, "json", entry.form, shown)["the-keys-to-the-cabinet.json"]
    assert cs.Circuit.from_json(saved) == entry.circuit


def test_an_uploaded_circuit_is_checked_and_can_be_measured(service: Service, entry: Entry) -> None:
    opened = service.open(entry.circuit.to_json())
    assert opened.circuit == entry.circuit and opened.form == replace(FORM, method="attribution-patching")
    key = opened.circuit.strongest(1)[0]
    assert service.ask("intervene", opened.id, {"edits": [{"key": key, "op": "ablate"}]}, quiet)["metric_after"]
    stranger = cs.Circuit.from_json(entry.circuit.to_json())
    stranger.graph.graph["preset"] = "somebody-elses"
    assert service.open(stranger.to_json()).form is None
    other = cs.Circuit.from_json(entry.circuit.to_json())
    other.graph.graph["dictionaries"][0]["fingerprint"] = "0" * 64
    with pytest.raises(InputError, match="other dictionaries"):
        service.ask("intervene", service.open(other.to_json()).id, {"edits": []}, quiet)
    for text in ("", "[]", '{"schema": "circuitsae/99"}', "{" * 100_000):
        with pytest.raises(InputError):
            service.open(text)


def test_the_public_gets_less() -> None:
    settings = make_settings("tiny", public=True)
    service = Service(settings)
    assert settings.max_tokens == 64 and "tiny" in settings.presets
    with pytest.raises(InputError, match="no uploads"):
        service.open("{}")
    with pytest.raises(InputError, match="nodes were asked for"):
        read_form(FORM.as_dict() | {"nodes": 5000}, settings)


def test_a_card_says_what_the_store_says(service: Service, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    key = entry.circuit.strongest(1, kind="feature")[0]
    node = entry.circuit[key]
    context = Context((" The", " keys"), (0.0, 2.5), 1)
    said = Description(
        node["site"], node["index"], "plural nouns", "somebody", ((" are", 0.5),), ((" is", -0.5),), (context,), 0.01
    )
    store = Mapped({(node["site"], node["index"]): "plural nouns"})
    monkeypatch.setattr(store, "describe", lambda site, index: said)
    sections = {s["title"].split(",")[0]: s for s in card_sections(None, store, entry.circuit, key)}
    assert sections["Label (somebody)"]["text"] == "plural nouns"
    assert sections["Promotes"]["tokens"] == [[" are", 0.5]] and "1%" in sections["How often"]["text"]
    assert sections["Most active on"]["contexts"] == [[(" The", 0.0), (" keys", 2.5)]]
    assert service.labels("no such preset") is None


def test_what_ships_is_shown_before_a_model_is_loaded() -> None:
    service = Service(make_settings("tiny"))
    entry = service.shipped
    assert entry is not None and entry.form is not None and entry.form.preset == "tiny"
    assert service.models.status("tiny") == {"ready": False, "text": "tiny will be loaded when it is needed"}
    assert service.store.get("shipped-tiny") is entry
    # The file is what tracing gives today.
    again = service.circuit(entry.form, quiet)[1]
    strongest = entry.circuit.strongest(20)
    assert set(strongest) <= set(again.graph)
    for key in strongest:
        assert again[key]["effect"] == pytest.approx(entry.circuit[key]["effect"], rel=1e-3, abs=1e-5)


def test_a_link_comes_back_and_a_damaged_one_is_said() -> None:
    state = {"form": FORM.as_dict(), "basket": [{"key": "a/1@2", "op": "scale", "value": 0.5}], "view": {"pins": ["é"]}}
    assert decode_state(encode_state(state)) == state
    for text in ("", "abc", "!!", encode_state(state)[:-9], encode_state({"x": "y" * 300_000})):
        with pytest.raises(InputError, match="damaged"):
            decode_state(text)


def test_a_store_forgets_the_oldest_within_its_budget(entry: Entry) -> None:
    store = Store(3 * entry.size)
    first = store.add(entry.circuit, None)
    pinned = store.add(entry.circuit, None, pinned_as="shipped-x")
    for _ in range(5):
        store.add(entry.circuit, None)
    assert len(store) == 3 and store.size <= 3 * entry.size
    assert store.get("shipped-x") is pinned
    with pytest.raises(InputError, match="no longer in the app's memory"):
        store.get(first.id)
    with pytest.raises(InputError):
        store.get({"id": 1})


@pytest.mark.slow
def test_memory_does_not_grow_with_traces_and_clicks() -> None:
    service = Service(Settings("tiny", ("tiny",), memory=2_000_000))
    service.models.spliced("tiny")
    words = ["key", "keys", "dog", "dogs", "cat", "cats", "book", "books"]
    held: list[int] = []
    for number in range(200):
        prompt = f"The {words[number % 8]} to the cabinet"
        entry = service.trace(Form("tiny", prompt, " are", " is", nodes=16), quiet)
        key = entry.circuit.strongest(1)[0]
        service.ask("intervene", entry.id, {"edits": [{"key": key, "op": "ablate"}]}, quiet)
        service.card(entry.id, key)
        if number in (60, 199):
            gc.collect()
            held.append(sum(type(o) in (cs.Circuit, Entry, cs.Session) for o in gc.get_objects()))
    assert service.store.size <= 2_000_000 and len(service.models._sessions) <= 6
    assert held[1] <= held[0] + 4


def test_work_stops_when_asked_and_after_its_deadline() -> None:
    jobs = Jobs(deadline=60)
    ended = threading.Event()

    def endless(progress: Any) -> None:
        try:
            while progress(1, 2, "steps"):
                time.sleep(0.005)
            raise CancelledError("Cancelled.")
        finally:
            ended.set()

    steps = jobs.stream("somebody", endless)
    assert next(steps).what == "steps"  # type: ignore[union-attr]
    assert jobs.cancel("somebody else") == 0 and jobs.cancel("somebody") == 1
    with pytest.raises(CancelledError):
        list(steps)
    assert ended.wait(30)
    # Whoever goes away stops the work, too.
    ended.clear()
    steps = jobs.stream("somebody", endless)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert ended.wait(30)
    with pytest.raises(InputError, match=r"after 0\.1 seconds"):
        list(Jobs(deadline=0.1).stream("somebody", endless))


def test_long_work_lets_short_work_in_between_its_parts() -> None:
    jobs = Jobs(deadline=60)
    began, ran = threading.Event(), threading.Event()
    parts: list[int] = []

    def long(progress: Any) -> Iterator[int]:
        for part in range(2000):  # many seconds: what isn't let in by then never is
            began.set()
            if ran.is_set():
                return
            time.sleep(0.01)
            yield part

    worker = threading.Thread(target=lambda: parts.extend(step.value for step in jobs.stream("a", long)))  # type: ignore[union-attr]
    worker.start()
    assert began.wait(30)
    assert jobs.run("b", lambda progress: ran.set() or 7) == 7
    worker.join()
    assert parts == list(range(len(parts))) and len(parts) < 2000


def test_one_who_waits_can_give_up() -> None:
    jobs = Jobs(deadline=60)
    began, free = threading.Event(), threading.Event()
    blocking = threading.Thread(target=lambda: jobs.run("a", lambda progress: began.set() or free.wait(60)))
    blocking.start()
    assert began.wait(30)

    def give_up() -> None:
        while not jobs.cancel("b"):  # until it stands in the queue
            time.sleep(0.01)

    threading.Thread(target=give_up).start()
    with pytest.raises(CancelledError, match="before it began"):
        list(jobs.stream("b", lambda progress: 1))
    free.set()
    blocking.join()


def test_parts_come_as_they_are_done() -> None:
    assert [s.value for s in Jobs(9).stream("a", lambda progress: iter([1, 2])) if isinstance(s, Done)] == [1, 2]


def test_the_deadline_counts_work_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gradio_app.jobs.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    jobs, began, free = Jobs(deadline=10), threading.Event(), threading.Event()
    blocking = threading.Thread(target=lambda: jobs.run("a", lambda progress: began.set() or free.wait(60)))
    blocking.start()
    assert began.wait(60)
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(jobs.run("b", lambda progress: progress(0, 1, "work"))))
    waiting.start()
    while "b" not in jobs._stops:
        threading.Event().wait(0.01)
    now[0] = 1000.0
    free.set()
    waiting.join(60)
    blocking.join(60)
    assert found == [True]

    def long(progress: Any) -> None:
        now[0] += 11
        if not progress(0, 1, "work"):
            raise CancelledError("stopped")

    with pytest.raises(InputError, match="Stopped after 10 seconds"):
        jobs.run("b", long)


def test_callers_without_a_session_stop_nobody_elses_work() -> None:
    calls = {owner_of(None, "10.0.0.1") for _ in range(3)}
    assert len(calls) == 3
    jobs = Jobs(deadline=60)
    began, free = threading.Event(), threading.Event()
    working = threading.Thread(
        target=lambda: jobs.run(owner_of(None, "10.0.0.1"), lambda progress: began.set() or free.wait(60))
    )
    working.start()
    assert began.wait(60)
    forged = [owner_of(name, None) for name in ("address:10.0.0.1", "10.0.0.1", "../address:10.0.0.1")]
    assert sum(jobs.cancel(owner) for owner in (*calls, *forged, "api")) == 0
    free.set()
    working.join(60)


def test_clients_take_turns_whatever_one_of_them_asks_for() -> None:
    jobs = Jobs(deadline=60)
    began, free = threading.Event(), threading.Event()
    done: list[str] = []

    def ask(owner: str) -> threading.Thread:
        before = sum(map(len, jobs._turns._waiting.values()))
        thread = threading.Thread(target=lambda: jobs.run(owner, lambda progress: done.append(owner)))
        thread.start()
        while sum(map(len, jobs._turns._waiting.values())) == before:
            time.sleep(0.001)
        return thread

    first = threading.Thread(target=lambda: jobs.run("x", lambda progress: began.set() or free.wait(60)))
    first.start()
    assert began.wait(60)
    threads = [ask(owner) for owner in ("greedy/1", "greedy/2", "greedy/3", "greedy/4", "a", "b", "a/measure")]
    free.set()
    for thread in (first, *threads):
        thread.join(60)
    assert done == ["greedy/1", "a", "b", "greedy/2", "a/measure", "greedy/3", "greedy/4"]


def test_a_client_has_a_limit_and_others_have_theirs() -> None:
    jobs = Jobs(deadline=60, each=2)
    began, free = threading.Event(), threading.Event()
    held = [jobs.stream(f"a/{n}", lambda progress: began.set() or free.wait(60)) for n in range(2)]
    threads = [threading.Thread(target=lambda steps=steps: list(steps)) for steps in held]
    for thread in threads:
        thread.start()
    while len(jobs._stops) < 2:
        time.sleep(0.001)
    with pytest.raises(InputError, match="2 of your questions are being answered"):
        jobs.run("a/3", lambda progress: None)
    free.set()
    assert jobs.run("b", lambda progress: 7) == 7
    for thread in threads:
        thread.join(60)
    assert jobs.run("a/3", lambda progress: 8) == 8


def test_whoever_waits_hears_of_it_and_who_leaves_is_never_worked_for() -> None:
    jobs = Jobs(deadline=60)
    began, free = threading.Event(), threading.Event()
    working = threading.Thread(target=lambda: jobs.run("a", lambda progress: began.set() or free.wait(60)))
    working.start()
    assert began.wait(60)
    ran: list[int] = []
    waiting = jobs.stream("b", lambda progress: ran.append(1))
    assert next(waiting).what == "Waiting for the model, 1 before this"  # type: ignore[union-attr]
    waiting.close()  # type: ignore[attr-defined]
    while jobs._turns._waiting:
        time.sleep(0.001)
    free.set()
    working.join(60)
    assert jobs.run("c", lambda progress: 7) == 7 and ran == []


def test_what_cant_end_in_time_is_refused_before_it_begins(service: Service) -> None:
    models = Models(replace(service.settings, deadline=1e-6))
    models._models["tiny"] = service.models.spliced("tiny")
    form = Form("tiny", "The keys to the cabinet", " are", " is", method="ablation", nodes=16)
    for name in ("trace", "effects"):
        with pytest.raises(InputError, match="'ablation' would take about"):
            models.compute(name, Asked(form), {}, quiet)
    _, circuit = models.compute("trace", Asked(replace(form, method=Form.method)), {}, quiet)
    assert circuit.features  # the quickest method is not held up by an estimate


def test_look_ups_are_answered_while_exports_are_stuck(
    service: Service, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, lock = threading.Event(), threading.Lock()
    now, most = 0, 0

    def stuck(*arguments: Any) -> dict[str, str]:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        assert free.wait(60)
        with lock:
            now -= 1
        return {"a": "b"}

    monkeypatch.setattr(view, "export_files", stuck)

    async def everybody() -> list[Any]:
        circuit, card, status, files, _ = view._lookups(service)
        exports = [asyncio.create_task(files({"id": entry.id, "format": "json"})) for _ in range(100)]
        await asyncio.sleep(0.05)
        assert (await circuit(entry.id))["payload"] == entry.payload
        assert (await status("tiny"))["ready"] and await card({"id": entry.id, "key": entry.keys[0]}) is not None
        assert not any(export.done() for export in exports)
        free.set()
        return await asyncio.gather(*exports)

    assert asyncio.run(everybody()) == [{"files": {"a": "b"}}] * 100
    assert most == view.EXPORTS


@pytest.mark.parametrize("here", [True, False])
def test_a_link_fetches_nothing_by_itself(service: Service, monkeypatch: pytest.MonkeyPatch, here: bool) -> None:
    asked: list[str] = []
    elsewhere = Service(replace(service.settings, presets=("tiny", "gpt2-small")))
    monkeypatch.setattr("gradio_app.service.is_present", lambda preset: here)

    def spliced(preset: str, progress: Any) -> Any:
        asked.append(preset)
        raise InputError("as far as this test goes")

    monkeypatch.setattr(elsewhere.models, "spliced", spliced)
    monkeypatch.setattr("gradio_app.actions.update", lambda **properties: properties)
    link = encode_state({"form": {"preset": "gpt2-small", "prompt": "The keys"}})
    request = types.SimpleNamespace(query_params={"c": link}, session_hash="s", client=None)
    found = list(Actions(elsewhere).restore(request))  # type: ignore[arg-type]
    assert asked == (["gpt2-small"] if here else [])
    assert found[0][1:3] == ["gpt2-small", "The keys"]
    said = "as far as this test goes" if here else "press Trace to fetch it"
    assert said in str(found[-1][0])
