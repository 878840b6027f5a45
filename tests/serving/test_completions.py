"""``/v1/chat/completions``: stateless for clients, and read once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving_app import client, service


@pytest.fixture(scope="module", params=["concat", "gate"])
def web(request: pytest.FixtureRequest) -> Any:
    return client(service(request.param))


def complete(web: Any, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    answer = web.post("/v1/chat/completions", json={"model": "builtin", "messages": messages, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def says(text: str, role: str = "user") -> dict[str, str]:
    return {"role": role, "content": text}


def hold(web: Any, lines: list[str], head: tuple[dict[str, str], ...] = ()) -> list[dict[str, Any]]:
    """A conversation as a client holds it, which sends all of it each time; the answers."""
    messages, answers = [*head], []
    for line in lines:
        messages.append(says(line))
        answers.append(complete(web, messages))
        messages.append(answers[-1]["choices"][0]["message"])
    return answers


def cached(answer: dict[str, Any]) -> int:
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_what_is_in_memory_already_is_not_read_again(web) -> None:
    answers = hold(web, ["My name is Anna.", "I live in Oslo.", "What is my name?"])
    assert "Anna" in answers[-1]["choices"][0]["message"]["content"]
    assert cached(answers[0]) == 0
    assert [cached(later) for later in answers[1:]] == [earlier["usage"]["total_tokens"] for earlier in answers[:-1]]


def test_a_message_may_be_parts_of_text(web) -> None:
    parts = [{"type": "text", "text": "My name "}, {"type": "text", "text": "is Anna."}]
    whole, split = (complete(web, [{"role": "user", "content": said}]) for said in ("My name is Anna.", parts))
    assert split["choices"] == whole["choices"]
    assert split["usage"] == whole["usage"]


def test_an_edited_history_goes_on_from_the_last_exchange_that_is_equal(web) -> None:
    messages: list[dict[str, Any]] = []
    answers = []
    for line in ("My name is Eva.", "I live in Rome.", "I like tea."):
        messages.append(says(line))
        answers.append(complete(web, messages))
        messages.append(answers[-1]["choices"][0]["message"])
    edited = [*messages[:2], says("I live in Bergen."), messages[3], says("Where do I live?")]
    answer = complete(web, edited)
    assert cached(answer) == answers[0]["usage"]["total_tokens"]
    assert "Rome" not in answer["choices"][0]["message"]["content"]


def test_a_history_of_elsewhere_is_read_once(web) -> None:
    told = [says("My name is Una."), says("Hi Una!", "assistant")]
    history = [*told, says("I live in Pisa."), says("Nice.", "assistant")]
    first = complete(web, [*history, says("What is my name?")])
    again = complete(web, [*history, says("Where do I live?")])
    assert (cached(first), "Una" in first["choices"][0]["message"]["content"]) == (0, True)
    assert (cached(again) > 0, "Pisa" in again["choices"][0]["message"]["content"]) == (True, True)
    assert 0 < cached(complete(web, [*told, says("What is my name?")])) < cached(again)


def test_another_head_shares_no_prefix(web) -> None:
    hold(web, ["My name is Ida."])
    under = hold(web, ["My name is Ida.", "What is my name?"], (says("Be kind.", "system"),))
    assert cached(under[0]) == 0
    assert cached(under[1]) > 0


def test_a_stream_says_what_the_whole_says(web) -> None:
    body = {"model": "builtin", "messages": [says("My name is Anna.")], "stream": True}
    text = web.post("/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}}).text
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    whole = complete(web, body["messages"])
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert said.strip() == whole["choices"][0]["message"]["content"]
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_a_reply_ends_at_a_stop_and_at_the_largest_number_of_tokens(web) -> None:
    whole = complete(web, [says("My name is Anna.")])["choices"][0]
    text = whole["message"]["content"]
    stopped = complete(web, [says("My name is Anna.")], stop=text[4:6])["choices"][0]
    assert stopped["message"]["content"] == text[:4].strip()
    assert stopped["finish_reason"] == "stop"
    short = complete(web, [says("My name is Anna.")], max_tokens=1)
    assert short["choices"][0]["finish_reason"] == "length"
    assert short["usage"]["completion_tokens"] == 1


def test_a_seed_gives_the_same_reply_again(web) -> None:
    asked = {"temperature": 1.5, "seed": 7}
    first, second = (complete(web, [says("Tell me more.")], **asked) for _ in range(2))
    assert first["choices"] == second["choices"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("response_format", {"type": "json_object"}),
        ("messages", []),
        ("messages", [{"role": "assistant", "content": "Hi."}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
        ("model", "gpt"),
        ("tools", [{"type": "function", "function": {"name": "weather"}}]),
        ("stop", [""]),
    ],
)
def test_what_is_not_supported_is_refused(web, field: str, value: object) -> None:
    body = {"model": "builtin", "messages": [says("Hi.")], field: value}
    assert web.post("/v1/chat/completions", json=body).status_code in (400, 404)


def test_what_clients_send_by_default_is_taken_and_what_is_not_there_is_named(web) -> None:
    body = {"model": "builtin", "messages": [{"role": "user", "content": "Hi."}]}
    harmless = {"frequency_penalty": 0, "presence_penalty": 0.0, "logprobs": False, "parallel_tool_calls": True}
    assert (
        web.post("/v1/chat/completions", json={**body, **harmless, "response_format": {"type": "text"}}).status_code
        == 200
    )
    for name, value in (("frequency_penalty", 1), ("response_format", {"type": "json_object"}), ("logprobs", True)):
        assert web.post("/v1/chat/completions", json={**body, name: value}).status_code == 400
    told = web.post("/v1/chat/completions", json={**body, "top_k": 3}).json()["error"]
    assert (told["code"], told["param"]) == ("unsupported_parameter", "top_k")
    assert web.post("/v1/chat/completions", json={**body, "stop": ["a"] * 5}).json()["error"]["param"] == "stop"
