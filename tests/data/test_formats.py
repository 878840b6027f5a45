"""Published formats: all give the conversation that our own form gives, and no key of them is dropped in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccm.data.formats import ROLES, ExampleError, read_example
from ccm.data.kinds import Chat, TaskExample

TURNS = (("I am Anna.", "Hello, Anna."), ("I live in\nOslo.", "A fine city."), ("Who am I?", "Anna."))
CHAT = Chat(TURNS)


def messages(*turns: tuple[str, str], who: tuple[str, str] = ("user", "assistant")) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for turn in turns for role, text in zip(who, turn, strict=True)]


def shared(*turns: tuple[str, str], who: tuple[str, str] = ("human", "gpt")) -> list[dict[str, Any]]:
    """Messages as ShareGPT has them."""
    return [{"from": role, "value": text} for turn in turns for role, text in zip(who, turn, strict=True)]


def exported(*turns: tuple[str, str]) -> dict[str, Any]:
    """An export of Open WebUI, with a reply that was thrown away."""
    said = [message for turn in turns for message in messages(turn)]
    tree = {
        f"m{i}": {"id": f"m{i}", "parentId": f"m{i - 1}" if i else None, "childrenIds": [f"m{i + 1}"], **message}
        for i, message in enumerate(said)
    }
    beside = {"id": "x", "parentId": "m0", "childrenIds": [], "role": "assistant", "content": "Thrown away."}
    return {"chat": {"history": {"messages": {"x": beside, **tree}, "currentId": f"m{len(said) - 1}"}}}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def mute(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**message, "weight": 0} if message["role"] == "assistant" else message for message in said]


OWN = {"messages": messages(*TURNS)}
ALPACA = {"instruction": "Who am", "input": "I?", "output": "Anna.", "history": [[*turn] for turn in TURNS[:2]]}
TASK = {"steps": ["One.", "Two."], "query": "Sum?", "answer": "Three."}
SAME = {
    "sharegpt": {"conversations": shared(*TURNS)},
    "sharegpt with our words": {"conversations": messages(*TURNS)},
    "our key with their words": {"messages": shared(*TURNS, who=("user", "bot"))},
    "other roles": {"messages": messages(*TURNS, who=("human", "model"))},
    "parts": {"messages": [{**m, "content": parts(m["content"][:3], m["content"][3:])} for m in OWN["messages"]]},
    "weights": {"messages": [{**m, "weight": float(m["role"] == "assistant")} for m in OWN["messages"]]},
    "nulls": {
        "messages": [{**m, "tool_calls": None, "name": None} for m in OWN["messages"]],
        "tools": [],
        "system": "",
    },
    "open webui": exported(*TURNS),
}


BUILDERS = {
    "messages": lambda turns: {"messages": messages(*turns)},
    "sharegpt": lambda turns: {"conversations": shared(*turns)},
    "alpaca": lambda turns: {
        "instruction": turns[-1][0],
        "output": turns[-1][1],
        "history": [[*t] for t in turns[:-1]],
    },
    "completion": lambda turns: {"prompt": messages(*turns)[:1], "completion": messages(*turns)[1:]},
    "open webui": lambda turns: exported(*turns),
}
WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@pytest.mark.parametrize("name", BUILDERS)
@given(turns=st.lists(st.tuples(WORDS, WORDS), min_size=2), system=st.just("") | WORDS)
def test_any_conversation_is_the_same_in_every_format(name: str, turns: list[tuple[str, str]], system: str) -> None:
    value = BUILDERS[name](turns)
    if name == "open webui":
        value["chat"]["system"] = system
    else:
        value["system"] = system
    assert read_example(value, set()) == Chat(tuple(turns), system)


@pytest.mark.parametrize("name", SAME)
def test_every_format_gives_the_conversation_that_our_own_gives(name: str) -> None:
    assert read_example(OWN, set()) == CHAT
    assert read_example(SAME[name], set()) == CHAT


def test_the_input_of_an_instruction_stands_under_it_and_its_history_before_it() -> None:
    assert read_example(ALPACA, set()) == Chat((*TURNS[:2], ("Who am\nI?", "Anna.")))
    assert read_example({**ALPACA, "input": ""}, set()) == Chat((*TURNS[:2], ("Who am", "Anna.")))


def test_of_prompt_and_completion_the_completion_is_learned() -> None:
    value = {"prompt": OWN["messages"][:5], "completion": OWN["messages"][5:]}
    muted = {"messages": [*mute(OWN["messages"][:5]), OWN["messages"][5]]}
    assert read_example(value, set()) == read_example(muted, set()) == Chat(TURNS, silent=frozenset({0, 1}))
    assert read_example({**value, "completion": "Anna."}, set()) == Chat(TURNS, silent=frozenset({0, 1}))
    with pytest.raises(ExampleError, match="1 turn .*at least two are needed"):
        read_example({"prompt": "Who?", "completion": "Anna."}, set())


SYSTEM = {
    "message": {"messages": [{"role": "system", "content": "Be kind."}, *OWN["messages"]]},
    "developer": {"messages": [{"role": "developer", "content": parts("Be ", "kind.")}, *OWN["messages"]]},
    "key": {**OWN, "system": "Be kind."},
    "parts": {**OWN, "system": parts("Be kind.")},
    "sharegpt": {**SAME["sharegpt"], "system": "Be kind."},
    "sharegpt message": {"conversations": [{"from": "system", "value": "Be kind."}, *shared(*TURNS)]},
    "open webui": {"chat": {**SAME["open webui"]["chat"], "params": {"system": "Be kind."}}},
    "older open webui": {"chat": {**SAME["open webui"]["chat"], "system": "Be kind."}},
}


@pytest.mark.parametrize("name", SYSTEM)
def test_a_system_message_may_stand_beside_the_messages_or_before_them(name: str) -> None:
    assert read_example(SYSTEM[name], set()) == Chat(TURNS, "Be kind.")


def test_several_system_messages_are_parted_by_a_blank_line() -> None:
    heads = [{"role": "system", "content": "Be kind."}, {"role": "developer", "content": "Be brief."}]
    value = {"messages": [*heads, *OWN["messages"]]}
    assert read_example(value, set()) == Chat(TURNS, "Be kind.\n\nBe brief.")
    for system in (ALPACA, {"prompt": OWN["messages"][:5], "completion": "Anna."}):
        assert read_example({**system, "system": "Be kind."}, set()).system == "Be kind."


def test_a_reply_of_weight_0_is_no_target() -> None:
    said = messages(*TURNS)
    said[1]["weight"], said[3]["weight"], said[5]["weight"] = 1, 0, 1
    assert read_example({"messages": said}, set()) == Chat(TURNS, silent=frozenset({1}))
    said[5]["weight"] = 0
    with pytest.raises(ExampleError, match="no reply after the first has a weight above 0"):
        read_example({"messages": said}, set())


# Keys ----------------------------------------------------------------------------------------------------------------

PLACES = {  # where a key may stand: from the key and its value to the whole
    "row": lambda extra: {**OWN, **extra},
    "sharegpt row": lambda extra: {**SAME["sharegpt"], **extra},
    "task": lambda extra: {**TASK, **extra},
    "alpaca": lambda extra: {**ALPACA, **extra},
    "completion": lambda extra: {"prompt": OWN["messages"][:5], "completion": "Anna.", **extra},
    "user": lambda extra: {"messages": [{**OWN["messages"][0], **extra}, *OWN["messages"][1:]]},
    "assistant": lambda extra: {"messages": [*OWN["messages"][:5], {**OWN["messages"][5], **extra}]},
    "sharegpt message": lambda extra: {"conversations": [{**shared(TURNS[0])[0], **extra}, *shared(*TURNS)[1:]]},
    "part": lambda extra: {
        "messages": [{"role": "user", "content": [{**parts("I am Anna.")[0], **extra}]}, *OWN["messages"][1:]]
    },
    "open webui": lambda extra: {**SAME["open webui"], **extra},
    "open webui chat": lambda extra: {"chat": {**SAME["open webui"]["chat"], **extra}},
}
ROWS = ("row", "sharegpt row", "task", "alpaca", "completion", "open webui", "open webui chat")
EVERYWHERE = {
    *("functions", "tool_calls", "function_call", "images", "image", "audio", "videos", "files"),
    *("thinking", "reasoning", "reasoning_content", "documents", "context"),
    *("loss", "loss_weight", "loss_scale", "mask", "loss_mask", "completion_mask", "train", "trainable"),
}
TOOLS = {place: {"tools"} for place in ("task", "alpaca", "completion", "user", "assistant", "sharegpt message")}
MEANT = {
    **{place: EVERYWHERE | {"chosen", "rejected", "label", "system_prompt", "chat_template_kwargs"} for place in ROWS},
    **{
        place: EVERYWHERE | {"name", "prefix", "tool_call_id", "refusal", "error"}
        for place in PLACES
        if place not in ROWS
    },
}


def outcome(value: dict[str, Any]) -> tuple[Any, set[str]]:
    """What is read, or the message of why not, and the keys that are told."""
    told: set[str] = set()
    try:
        return read_example(value, told), told
    except ExampleError as fault:
        return str(fault), told


@pytest.mark.parametrize(
    ("place", "key"), [(place, key) for place, keys in [*MEANT.items(), *TOOLS.items()] for key in sorted(keys)]
)
def test_a_key_that_changes_the_meaning_is_refused_by_its_name(place: str, key: str) -> None:
    found, _ = outcome(PLACES[place]({key: [{"x": 1}]}))
    assert isinstance(found, str)
    assert repr(key) in found


@pytest.mark.parametrize("value", [True, False, 0, 1, 0.5, [0, 1], "all"])
@pytest.mark.parametrize("key", ["loss", "loss_weight", "mask", "loss_mask", "train"])
@pytest.mark.parametrize("place", ["row", "task", "user", "assistant", "sharegpt message"])
def test_what_says_elsewhere_what_is_learned_is_refused_with_how_it_is_said_here(
    place: str, key: str, value: Any
) -> None:
    found, _ = outcome(PLACES[place]({key: value}))
    assert str(found).startswith(
        f"{key!r} cannot be used: what is learned is said by 'weight', 0 or 1, of an assistant"
    )


@pytest.mark.parametrize("key", ["prefix", "error"])
@pytest.mark.parametrize("place", ["user", "assistant", "sharegpt message", "part"])
def test_a_flag_that_is_false_says_nothing_and_one_that_is_true_is_refused(place: str, key: str) -> None:
    assert outcome(PLACES[place]({key: False})) == outcome(PLACES[place]({}))
    assert repr(key) in outcome(PLACES[place]({key: True}))[0]


@given(
    st.sampled_from([*PLACES]), st.one_of(st.text(min_size=1), st.sampled_from(sorted(set().union(*MEANT.values()))))
)
def test_any_key_is_used_refused_or_told(place: str, key: str) -> None:
    without, told = outcome(PLACES[place]({}))
    assert isinstance(without, Chat | TaskExample)
    if key in PLACES[place]({}):
        return
    found, now = outcome(PLACES[place]({key: "words"}))
    used = isinstance(found, str) or found != without
    assert used or any(name.endswith(key) for name in now - told)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("empty", [None, "", [], {}])
def test_a_key_without_a_value_says_nothing(place: str, empty: Any) -> None:
    assert outcome(PLACES[place]({"tool_calls": empty, "source": empty})) == outcome(PLACES[place]({}))


def test_what_is_told_is_named_with_its_place() -> None:
    said = [{**OWN["messages"][0], "id": 3}, *OWN["messages"][1:]]
    told: set[str] = set()
    assert read_example({"messages": said, "source": "web"}, told) == CHAT
    assert told == {"source", "messages.id"}
    found = SAME["open webui"]["chat"]
    read_example({"chat": {**found, "title": "Anna", "params": {"temperature": 1}}, "pinned": False}, told := set())
    beside = "chat.history.messages beside the branch of currentId"
    assert told == {"pinned", "chat.title", "chat.params.temperature", beside}


# Faults --------------------------------------------------------------------------------------------------------------

USER, ASSISTANT = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
FAULTS: list[tuple[Any, str, str]] = [
    ([1], "", "a list; every example is an object in braces"),
    ("text", "", "a str; every example is an object"),
    ({}, "", "has the keys []; give 'messages', or 'conversations', or 'prompt' with 'completion', or"),
    ({"steps": ["a"], "query": "b"}, "", "has the keys ['query', 'steps']"),
    ({"messages": None}, "", "has the keys ['messages']"),
    ({**OWN, **SAME["sharegpt"]}, "", "has 'messages' and 'conversations'; keep one of them"),
    ({"messages": "Hi."}, "", "'messages' must be a list of objects"),
    ({"conversations": ["Hi."]}, "", "'conversations' must be a list of objects"),
    ({"messages": []}, "", "0 turns (a user's message and its reply); at least two are needed"),
    ({"messages": [USER, ASSISTANT]}, "", "1 turn (a user's message and its reply); at least two are needed"),
    ({"instruction": "Hi.", "output": "Hello."}, "", "1 turn (a user's message and its reply)"),
    ({"messages": [USER, ASSISTANT, USER]}, "", "the last message is the user's; end with the assistant's reply"),
    ({"messages": [USER, USER, ASSISTANT]}, "message 2", "the role is 'user', expected 'assistant': roles must alter"),
    ({"messages": [ASSISTANT, USER]}, "message 1", "the role is 'assistant', expected 'user'"),
    ({"messages": [{"role": "system", "content": "x"}, ASSISTANT]}, "message 2", "the role is 'assistant'"),
    ({"messages": [USER, {"role": "system", "content": "x"}]}, "message 2", "it stands before all others"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "message 2", "the role is 'tool'; it must be one of user"),
    ({"conversations": [{"from": "function_call", "value": "x"}]}, "message 1", "the role is 'function_call'"),
    ({"messages": [USER, {"role": ["user"], "content": "x"}]}, "message 2", "the role is ['user']"),
    ({"messages": [USER, {"role": "assistant"}]}, "message 2", "the content is null; it must be some text"),
    ({"messages": [{"role": "user", "content": " "}]}, "message 1", "the content is ' '; it must be some text"),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, "message 1", "the content holds half of a surrogate pair"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1", "a part of the content is of type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 1", "a part of the content is null"),
    ({"messages": [{**ASSISTANT, "weight": 0.5}]}, "message 1", "the weight is 0.5; it must be 0 or 1"),
    ({"messages": [{**ASSISTANT, "weight": True}]}, "message 1", "the weight is True"),
    ({"messages": [{**USER, "weight": 1}]}, "message 1", "the weight is 1; it must be 0 or 1, and of others"),
    ({**SYSTEM["message"], "system": "Be brief."}, "", "has 'system' and a system's message; keep one of them"),
    ({**OWN, "system": 3}, "", "'system' is 3; it must be some text"),
    ({**ALPACA, "history": [["a"]]}, "", "'history' must be a list of pairs"),
    ({**ALPACA, "history": [["a", ""]]}, "", "'history' is ''"),
    ({"chat": "Hi."}, "", "'chat' must be a chat of Open WebUI"),
    ({"steps": [], "query": "q", "answer": "a"}, "", "'steps' must be a list of at least one text"),
    ({"steps": "text", "query": "q", "answer": "a"}, "", "'steps' is 'text'; it must be a list of texts"),
    ({"steps": ["a", " "], "query": "q", "answer": "a"}, "", "a text of 'steps' is ' '"),
    ({"steps": ["a"], "query": "", "answer": "a"}, "", "'query' is ''; it must be some text"),
    ({"steps": ["a"], "query": "q", "answer": 3}, "", "'answer' is 3; it must be some text"),
    ({**TASK, "choices": ["Two."]}, "", "the answer 'Three.' is none of the choices ['Two.']"),
    ({**TASK, "choices": "Three."}, "", "'choices' is 'Three.'; it must be a list of texts"),
]


@pytest.mark.parametrize(("value", "at", "why"), FAULTS)
def test_a_malformed_value_is_refused_with_its_place_and_reason(value: Any, at: str, why: str) -> None:
    with pytest.raises(ExampleError) as caught:
        read_example(value, set())
    assert caught.value.at == at
    assert why in caught.value.why


@pytest.mark.parametrize("change", [{"currentId": "y"}, {"currentId": None}, {"loop": True}])
def test_a_branch_that_does_not_hold_together_is_refused(change: dict[str, Any]) -> None:
    value = exported(*TURNS)
    history = value["chat"]["history"]
    if change.pop("loop", False):
        history["messages"]["m0"]["parentId"] = "m5"
    history.update(change)
    with pytest.raises(ExampleError, match=r"breaks off at the message|0 turns"):
        read_example(value, set())


def test_thoughts_within_a_reply_of_open_webui_are_refused() -> None:
    value = exported(TURNS[0], ("Who?", '<details type="reasoning" done="true">\nHm.\n</details>\nAnna.'))
    with pytest.raises(ExampleError, match="a block of Open WebUI's, of type 'reasoning'; take it out"):
        read_example(value, set())


def test_the_roles_are_those_of_the_publishers() -> None:
    assert {role for role, ours in ROLES.items() if ours == "assistant"} == {"assistant", "gpt", "model", "bot"}


@pytest.mark.parametrize("place", ["row", "sharegpt row"])
def test_definitions_of_tools_stand_before_the_turns(place: str) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    for said in (tools, json.dumps(tools)):
        chat, told = outcome(PLACES[place]({"tools": said}))
        assert json.loads(chat.tools) == tools
        assert not told
    for wrong in ({"x": 1}, ["weather"], "weather"):
        assert "'tools' must be a list of definitions" in outcome(PLACES[place]({"tools": wrong}))[0]
