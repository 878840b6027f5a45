"""``/v1/responses``: what comes back, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from openresponses_types import types
from serving_app import ask, backend, client, events_of, service, text_of

from ccm.chat.conversation import Conversation
from ccm.engine.decoder import CCMModel
from ccm.serving.memories import Memories

NAME, ASKED = "My name is Anna.", "What is my name?"


@pytest.fixture(scope="module", params=["concat", "gate"])
def web(request: pytest.FixtureRequest) -> Any:
    return client(service(request.param))


def test_an_id_names_a_memory_that_the_next_request_goes_on_from(web) -> None:
    first = ask(web, NAME)
    second = ask(web, ASKED, first["id"])
    assert text_of(second) == "Your name is Anna."
    assert second["previous_response_id"] == first["id"]
    used = first["usage"]["total_tokens"]
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == used
    assert second["usage"]["input_tokens"] > used
    types.ResponseResource.model_validate(second)


@pytest.mark.parametrize("rule", ["concat", "gate"])
def test_a_reply_is_that_of_a_conversation_in_the_process(rule: str) -> None:
    held = Conversation(backend(rule).model, backend(rule).tokenizer, system="You are kind.")
    asked, last = client(service(rule)), None
    for line in (NAME, "I live in Oslo.", ASKED, "Where do I live?"):
        answer = ask(asked, line, last, instructions="You are kind.")
        last = answer["id"]
        assert text_of(answer) == held.answer(line)
        assert answer["ccm:memory"]["entries"] == held.memory.entries[0]
        assert answer["ccm:memory"]["bytes"] == held.memory.nbytes
        assert answer["ccm:memory"]["full_context_bytes"] == held.last.full_context_bytes


def test_two_responses_may_follow_one(web) -> None:
    root = ask(web, NAME)
    one, other = (ask(web, f"I live in {town}.", root["id"]) for town in ("Oslo", "Rome"))
    for branch, town in ((one, "Oslo"), (other, "Rome")):
        assert town in text_of(ask(web, "Where do I live?", branch["id"]))
        assert "Anna" in text_of(ask(web, ASKED, branch["id"]))


def test_exchanges_of_the_past_are_taken_in(web) -> None:
    items = [
        {"type": "message", "role": "assistant", "content": "Hello!"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": NAME}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi Anna!"}]},
        {"type": "message", "role": "user", "content": ASKED},
    ]
    answer = ask(web, items)
    assert text_of(answer) == "Your name is Anna."
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 0


def test_messages_need_no_type(web) -> None:
    items = [
        {"role": "user", "content": NAME},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": ASKED},
    ]
    answer = ask(web, items)
    assert text_of(answer) == "Your name is Anna."
    kept = web.get(f"/v1/responses/{answer['id']}/input_items").json()["data"]
    assert [item["type"] for item in kept] == ["message"] * 3


def test_events_come_in_their_order_and_agree_with_the_whole(web) -> None:
    body = {"model": "builtin", "input": NAME, "stream": True}
    events = events_of(web.post("/v1/responses", json=body).text)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * len(deltas),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    last = events[-1]["response"]
    assert "".join(deltas).strip() == text_of(last)
    assert web.get(f"/v1/responses/{last['id']}").json() == last
    for event in events:
        name = "".join(part.title() for part in event["type"].replace(".", "_").split("_"))
        getattr(types, f"{name}StreamingEvent").model_validate(event)


def test_what_came_is_kept_and_can_be_had_again(web) -> None:
    answer = ask(web, [{"type": "message", "role": "user", "content": NAME}])
    held = web.get(f"/v1/responses/{answer['id']}/input_items").json()
    assert [item["content"] for item in held["data"]] == [[{"type": "input_text", "text": NAME}]]
    assert held["first_id"] == held["last_id"] == held["data"][0]["id"]


def test_without_store_nothing_is_kept(web) -> None:
    answer = ask(web, NAME, store=False)
    assert answer["store"] is False
    refused = web.post("/v1/responses", json={"model": "builtin", "input": ASKED, "previous_response_id": answer["id"]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "previous_response_not_found")


def test_a_deleted_response_is_gone_and_says_who_holds_what_it_said(web) -> None:
    first = ask(web, NAME)
    second = ask(web, "I live in Oslo.", first["id"])
    third = ask(web, "Thank you!", second["id"])
    gone = web.delete(f"/v1/responses/{first['id']}").json()
    assert (gone["ccm:deleted"], gone["ccm:still_held_by"]) == ([first["id"]], 2)
    assert web.get(f"/v1/responses/{first['id']}").status_code == 404
    assert text_of(ask(web, ASKED, third["id"])) == "Your name is Anna."
    gone = web.delete(f"/v1/responses/{second['id']}?cascade=true").json()
    assert third["id"] in gone["ccm:deleted"]
    assert web.get(f"/v1/responses/{third['id']}").status_code == 404


def test_instructions_stand_before_all_and_are_not_inherited(web) -> None:
    first = ask(web, NAME, instructions="Be kind.")
    assert first["instructions"] == "Be kind."
    head = len(backend().tokenizer("Be kind.", add_special_tokens=False)["input_ids"])
    bare = ask(web, NAME)
    assert first["usage"]["input_tokens"] - bare["usage"]["input_tokens"] >= head
    under = ask(web, ASKED, first["id"], instructions="Be very brief, please.")
    assert under["instructions"] == "Be very brief, please."
    assert "Anna" in text_of(under)


@pytest.mark.parametrize("rule", ["concat", "gate"])
def test_what_is_kept_after_a_change_of_head_is_the_memory_of_the_conversation(rule: str) -> None:
    served, held = service(rule), Conversation(backend(rule).model, backend(rule).tokenizer, system="Be kind.")
    web, last = client(served), None
    said = (("Be kind.", NAME), ("Be very brief, please.", "I live in Oslo."), ("Be.", "I like tea."), ("Be.", ASKED))
    for system, line in said:
        other = Conversation(backend(rule).model, backend(rule).tokenizer, system=system)
        other.go_on(held.memory)
        held = other
        answer = ask(web, line, last, instructions=system)
        last = answer["id"]
        assert text_of(answer) == held.answer(line)
    turn = served.store.get(b"anyone", last)
    kept = served.memories.get(b"anyone", turn.id).memory
    assert kept.steps == held.memory.steps
    assert all(map(torch.equal, (*kept.keys, *kept.values), (*held.memory.keys, *held.memory.values)))


def test_a_client_that_sends_the_whole_conversation_has_only_the_rest_read(web) -> None:
    first = ask(web, [{"role": "user", "content": NAME}])
    said = [{"role": "user", "content": NAME}, *first["output"], {"role": "user", "content": ASKED}]
    second = ask(web, said)
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == first["usage"]["total_tokens"]
    assert second["previous_response_id"] is None
    assert text_of(second) == "Your name is Anna."
    more = [*said, *second["output"], {"role": "user", "content": "Thanks."}]
    third = ask(web, more)
    assert third["usage"]["input_tokens_details"]["cached_tokens"] == second["usage"]["total_tokens"]
    other = ask(web, more, instructions="Be kind to whoever sends all of it.")
    assert other["usage"]["input_tokens_details"]["cached_tokens"] == 0, "under another head it is another conversation"
    edited = [{"role": "user", "content": "My name is Bob."}, *more[1:3]]
    assert text_of(ask(web, edited)) == "Your name is Bob."
    assert text_of(ask(web, ASKED, third["id"])) == "Your name is Anna."
    assert len(web.get(f"/v1/responses/{second['id']}/input_items").json()["data"]) == 3


def test_every_beginning_of_a_conversation_that_came_whole_is_found(web) -> None:
    said = [
        {"role": role, "content": f"{role} says {number}."} for number in range(3) for role in ("user", "assistant")
    ]
    whole = ask(web, [*said, {"role": "user", "content": "Bye."}], instructions="Find it.")
    assert whole["usage"]["input_tokens_details"]["cached_tokens"] == 0
    again = ask(web, [*said, {"role": "user", "content": "Bye."}], instructions="Find it.")
    assert again["usage"]["input_tokens_details"]["cached_tokens"] > 0
    part = ask(web, [*said[:4], {"role": "user", "content": "And so on."}], instructions="Find it.")
    cached = part["usage"]["input_tokens_details"]["cached_tokens"]
    assert 0 < cached < again["usage"]["input_tokens_details"]["cached_tokens"]


def test_a_text_without_positions_left_is_told_in_the_words_of_the_api(web) -> None:
    said = [{"role": role, "content": "So it goes. " * 40} for _ in range(40) for role in ("user", "assistant")]
    answer = web.post("/v1/responses", json={"model": "builtin", "input": [*said, {"role": "user", "content": "Hi."}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "truncation: auto" in answer.json()["error"]["message"]


def test_a_call_is_not_required_where_there_is_no_tool(web) -> None:
    for path, body in (
        ("responses", {"model": "builtin", "input": "Hi."}),
        ("chat/completions", {"model": "builtin", "messages": [{"role": "user", "content": "Hi."}]}),
    ):
        answer = web.post(f"/v1/{path}", json={**body, "tool_choice": "required"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")


def test_a_system_message_among_the_items_stays_for_the_conversation(web) -> None:
    system = {"type": "message", "role": "developer", "content": "Be kind."}
    first = ask(web, [system, {"type": "message", "role": "user", "content": NAME}])
    second = ask(web, ASKED, first["id"])
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == first["usage"]["total_tokens"]
    late = [
        {"type": "message", "role": "user", "content": "Hi."},
        system,
        {"type": "message", "role": "user", "content": "Hi."},
    ]
    refused = web.post("/v1/responses", json={"model": "builtin", "input": late})
    assert refused.status_code == 400


def test_a_reply_that_is_cut_off_is_incomplete(web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccm.serving.service.LONGEST", 2)
    body = {"model": "builtin", "input": NAME, "stream": True}
    last = events_of(web.post("/v1/responses", json=body).text)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["usage"]["output_tokens"] == 2
    types.ResponseIncompleteStreamingEvent.model_validate(last)


def test_a_compaction_item_takes_the_system_message_along(web) -> None:
    system = {"type": "message", "role": "system", "content": "Be kind."}
    first = ask(web, [system, {"type": "message", "role": "user", "content": NAME}])
    made = web.post("/v1/responses/compact", json={"model": "builtin", "previous_response_id": first["id"]}).json()
    answer = ask(web, [*made["output"], {"type": "message", "role": "user", "content": ASKED}])
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == first["usage"]["total_tokens"]


def test_a_compaction_item_holds_the_conversation(web) -> None:
    first = ask(web, NAME)
    made = web.post("/v1/responses/compact", json={"model": "builtin", "previous_response_id": first["id"]}).json()
    types.CompactResource.model_validate(made)
    (item,) = made["output"]
    assert (item["type"], made["object"]) == ("compaction", "response.compaction")
    answer = ask(web, [item, {"type": "message", "role": "user", "content": ASKED}])
    assert text_of(answer) == "Your name is Anna."
    altered = {**item, "encrypted_content": "A" * len(item["encrypted_content"])}
    body = {"model": "builtin", "input": [altered, {"type": "message", "role": "user", "content": ASKED}]}
    refused = web.post("/v1/responses", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_compaction")


def test_a_compaction_item_comes_with_a_response_from_the_threshold_on(web) -> None:
    asked = [{"type": "compaction", "compact_threshold": 20}]
    first = ask(web, NAME, context_management=asked)
    assert [item["type"] for item in first["output"]] == ["message"]
    second = ask(web, "I live in Oslo.", first["id"], context_management=asked)
    assert [item["type"] for item in second["output"]] == ["message", "compaction"]
    again = [second["output"][1], {"type": "message", "role": "user", "content": ASKED}]
    assert "Anna" in text_of(ask(web, again))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 1.0),
        ("top_logprobs", 3),
        ("max_tool_calls", 2),
        ("parallel_tool_calls", False),
        ("include", ["message.output_text.logprobs"]),
        ("text", {"format": {"type": "json_schema", "name": "x", "schema": {}}}),
        ("reasoning", {"effort": "high"}),
        ("service_tier", "flex"),
        ("temperature", 9),
        ("top_p", 0),
        ("max_output_tokens", 1),
        ("unheard_of", 1),
        ("model", "gpt"),
        ("input", []),
        ("input", " "),
        ("input", [{"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"type": "message", "role": "assistant", "content": "Hi."}]),
        ("tools", [{"type": "function", "name": "weather", "parameters": {}}]),  # turns of separators have none
        ("input", [{"type": "function_call_output", "call_id": "x", "output": "4"}]),
    ],
)
def test_what_is_not_supported_is_refused_and_never_ignored(web, field: str, value: object) -> None:
    refused = web.post("/v1/responses", json={"model": "builtin", "input": "Hi.", field: value})
    assert refused.status_code in (400, 404)
    told = refused.json()["error"]
    assert told["message"]
    assert told["type"] in ("invalid_request_error", "not_found")


def test_a_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    first = service(folder=tmp_path)
    named = ask(client(first), NAME)
    first.store.close()
    second = service(folder=tmp_path)
    assert text_of(ask(client(second), ASKED, named["id"])) == "Your name is Anna."
    second.store.close()


def test_an_item_goes_on_at_another_server_with_the_same_secret_alone(tmp_path: Path) -> None:
    here, there, elsewhere = (client(service(secret=tmp_path / name)) for name in ("one", "one", "other"))
    named = ask(here, NAME)
    (item,) = here.post("/v1/responses/compact", json={"model": "builtin", "previous_response_id": named["id"]}).json()[
        "output"
    ]
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    said = [item, {"type": "message", "role": "user", "content": ASKED}]
    assert text_of(ask(there, said)) == "Your name is Anna."
    assert elsewhere.post("/v1/responses", json={"model": "builtin", "input": said}).status_code == 400


def test_one_key_never_has_what_is_of_another(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\nfirst\nsecond\n")
    web = client(service(), tmp_path / "keys")
    one, other = ({"Authorization": f"Bearer {key}"} for key in ("first", "second"))
    body = {"model": "builtin", "input": NAME}
    assert web.post("/v1/responses", json=body).status_code == 401
    assert web.post("/v1/responses", json=body, headers={"Authorization": "Bearer third"}).status_code == 401
    named = web.post("/v1/responses", json=body, headers=one).json()
    made = web.post(
        "/v1/responses/compact", json={"model": "builtin", "previous_response_id": named["id"]}, headers=one
    ).json()
    for answer in (
        web.get(f"/v1/responses/{named['id']}", headers=other),
        web.get(f"/v1/responses/{named['id']}/input_items", headers=other),
        web.delete(f"/v1/responses/{named['id']}", headers=other),
        web.post("/v1/responses", json={**body, "previous_response_id": named["id"]}, headers=other),
    ):
        assert answer.status_code == 404
    said = [*made["output"], {"type": "message", "role": "user", "content": ASKED}]
    assert web.post("/v1/responses", json={**body, "input": said}, headers=other).status_code == 400
    assert web.get(f"/v1/responses/{named['id']}", headers=one).status_code == 200


def test_where_positions_end_a_conversation_is_refused_unless_it_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CCMModel, "max_positions", 64)
    web, last = client(service()), None
    for _ in range(6):
        answer = web.post(
            "/v1/responses", json={"model": "builtin", "input": f"{NAME} {NAME}", "previous_response_id": last}
        )
        if answer.status_code != 200:
            break
        last = answer.json()["id"]
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "positions" in answer.json()["error"]["message"]
    ask(web, NAME, last, truncation="auto")


def test_what_keeps_no_text_retrieves_none(tmp_path: Path) -> None:
    served = service(folder=tmp_path, keep_text=False)
    web = client(served)
    named = ask(web, NAME)
    assert text_of(ask(web, ASKED, named["id"])) == "Your name is Anna."
    assert web.get(f"/v1/responses/{named['id']}").status_code == 404
    served.store.close()
    assert b"Anna" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_a_step_that_is_forgotten_while_the_reply_is_written_stays_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    served = service()
    web = client(served)
    first = ask(web, "My name is Anna.")
    second = ask(web, "I live in Oslo.", first["id"])
    add = served.store.add

    def late(*given: Any) -> None:
        Memories(served.backend, served.store).forget(b"anyone", second["id"], 2)
        add(*given)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(served.store, "add", late)
        body = {"model": "builtin", "input": "Where do I live?", "previous_response_id": second["id"]}
        answer = web.post("/v1/responses", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conversation_changed")
    assert len([*served.store.rows()]) == 1
