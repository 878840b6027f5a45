"""Published formats of conversations and tasks: each is a function from a JSON value to an example, and a row below.

    {"messages": [{"role": "user", "content": ...}, ...], "system": ...}        ours, OpenAI's, Anthropic's, TRL's
    {"conversations": [{"from": "human", "value": ...}, ...], "system": ...}    ShareGPT's, as LLaMA-Factory reads it
    {"prompt": ..., "completion": ...}                                          TRL's: texts, or lists of messages
    {"instruction": ..., "input": ..., "output": ..., "history": [[..., ...]]}  Alpaca's, as LLaMA-Factory reads it
    {"chat": {"history": {"messages": {...}, "currentId": ...}}}                Open WebUI's exports
    {"steps": [...], "query": ..., "answer": ..., "choices": [...]}             ours, of tasks

Every key of a value is used, or refused where it changes what is said or learned, or named in a warning. A key that
holds null, an empty text, list or object says nothing; nor does a flag such as "prefix" that holds false.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from ccm.core.plain_text import HALF
from ccm.data.kinds import Chat, TaskExample

Object = Mapping[str, Any]
ROLES = {
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "system": "system", "developer": "system",
}  # fmt: skip
_SPEAKERS = ("user", "assistant")  # in turn
_DETAILS = re.compile(r'<details[^>]* type="(\w+)"')  # where Open WebUI puts thoughts and calls of tools into a reply
_FLAGS = ("prefix", "error")  # of a message: false is what they are without being said
_TREE = ("id", "parentId", "childrenIds")  # of a message of Open WebUI


class ExampleError(Exception):
    """What is wrong with a value.

    Attributes:
        why: the reason.
        at: where in the value, such as "message 2"; empty for all of it.
    """

    def __init__(self, why: str, at: str = "") -> None:
        super().__init__(why)
        self.why, self.at = why, at


class TooShortError(ExampleError):
    """A conversation of one turn: there is nothing to remember in it."""


def _refused(reasons: Mapping[str, str]) -> dict[str, str]:
    """Why each key cannot be used, from the keys of each reason."""
    return {key: why for why, keys in reasons.items() for key in keys.split()}


_BOTH = _refused({
    "calls of tools are not read; write what is called and answered into the texts":
        "functions tool_calls function_call tool_choice tool_call_id",
    "only text is read; leave it out where the texts make sense without it":
        "images image image_url videos video audios audio files attachments",
    "thoughts are not read; write what is to be learned into the reply":
        "thinking thinking_blocks reasoning reasoning_content reasoning_details",
    "what is learned is said by 'weight', 0 or 1, of an assistant's message; say it so, or leave it out":
        "weight loss loss_weight loss_scale sample_weight mask loss_mask completion_mask assistant_mask "
        "assistant_masks train training trainable train_detail train_on_inputs",
    "texts beside the messages are not read; write them into a message":
        "context documents instruction instructions",
})  # fmt: skip
_ROW = _BOTH | _refused({
    "definitions of tools are read with 'messages' or 'conversations', not here": "tools",
    "it is read under the name 'system'": "system_prompt system_message",
    "it is read in a conversation, not here": "system history",
    "it is read with 'steps', not here": "choices",
    "good and bad replies are not told apart; give the good ones as data of their own": "chosen rejected label kto_tag",
    "a chat template takes no other settings here; leave it out":
        "chat_template chat_template_kwargs reasoning_effort model_identity",
})  # fmt: skip
_MESSAGE = _BOTH | _refused({
    "definitions of tools stand beside the messages": "tools",
    "names are not read; write who speaks into the content": "name",
    "a reply has no part that is given; leave it out, and the whole reply is learned": "prefix",
    "the reply failed, or was refused; leave the conversation out": "error refusal",
    "channels are not read; leave messages of others than the user's out": "channel recipient",
})  # fmt: skip


class _Message(NamedTuple):
    role: str
    text: str
    learned: bool = True


@dataclass(frozen=True)
class Format:
    """How one form of data is read.

    Attributes:
        needs: the keys that an object of it has.
        uses: others that it may have.
        read: the example that an object is; names of keys that it does not use go into the set.
    """

    needs: tuple[str, ...]
    uses: tuple[str, ...]
    read: Callable[[Object, set[str]], Chat | TaskExample]

    def __str__(self) -> str:
        first, *others = map(repr, self.needs)
        return f"{first} with {' and '.join(others)}" if others else first


def read_example(value: Any, told: set[str]) -> Chat | TaskExample:
    """The conversation or task that a JSON value is.

    Args:
        value: it, of any of :data:`FORMATS`.
        told: takes the names of keys that are not used, and change nothing of what is said or learned.

    Raises:
        ExampleError: when it is none, or has a key that cannot be used.
    """
    if not isinstance(value, dict):
        raise ExampleError(f"a {type(value).__name__}; every example is an object in braces")
    found = [form for form in FORMATS if all(value.get(key) is not None for key in form.needs)]
    if not found:
        raise ExampleError(f"has the keys {sorted(value)}; give {', or '.join(map(str, FORMATS))}")
    if len(found) > 1:
        raise ExampleError(f"has {' and '.join(repr(form.needs[0]) for form in found)}; keep one of them")
    (form,) = found
    _check_keys(value, (*form.needs, *form.uses), _ROW, told)
    return form.read(value, told)


def _check_keys(
    value: Object, used: Collection[str], refused: Mapping[str, str], told: set[str], within: str = ""
) -> None:
    """Refuse unused keys that change the meaning, and tell of all others."""
    for key, held in value.items():
        if key in used or held is None or held in ("", [], {}) or (held is False and key in _FLAGS):
            continue
        if key in refused:
            raise ExampleError(f"{key!r} cannot be used: {refused[key]}")
        told.add(within + key)


def _conversation(key: str, value: Object, told: set[str]) -> Chat:
    """The messages under a key, with the definitions of tools beside them."""
    chat, tools = _chat(_said(value[key], key, told), value.get("system"), told), value.get("tools")
    if isinstance(tools, str) and tools:  # as JSON, where a table has a column of them
        try:
            tools = json.loads(tools)
        except ValueError:
            tools = [tools]
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise ExampleError("'tools' must be a list of definitions, each an object")
    return replace(chat, tools=json.dumps(tools)) if tools else chat


def _completion(value: Object, told: set[str]) -> Chat:
    """Of the replies, those of the completion are learned, as TRL does."""
    prompt, completion = (
        [{"role": role, "content": value[key]}] if isinstance(value[key], str) else value[key]
        for key, role in (("prompt", "user"), ("completion", "assistant"))
    )
    given = [message._replace(learned=False) for message in _said(prompt, "prompt", told)]
    return _chat([*given, *_said(completion, "completion", told)], value.get("system"), told)


def _alpaca(value: Object, told: set[str]) -> Chat:
    """The input stands under the instruction; every reply is learned, also in the history."""
    history = value.get("history") or []
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise ExampleError("'history' must be a list of pairs, an instruction and its output")
    asked = _text(value["instruction"], "'instruction'")
    if value.get("input"):
        asked += "\n" + _text(value["input"], "'input'")
    turns = [(_text(user, "'history'"), _text(reply, "'history'")) for user, reply in history]
    turns.append((asked, _text(value["output"], "'output'")))
    said = [_Message(role, text) for turn in turns for role, text in zip(_SPEAKERS, turn, strict=True)]
    return _chat(said, value.get("system"), told)


def _open_webui(value: Object, told: set[str]) -> Chat:
    """The branch that ends with the message ``currentId``."""
    chat = _inner(value, "chat")
    history, parameters = _inner(chat, "history"), _inner(chat, "params")
    messages = _inner(history, "messages")
    if not messages or not all(isinstance(message, dict) for message in messages.values()):
        raise ExampleError("'chat' must be a chat of Open WebUI, with 'history', its 'messages' and 'currentId'")
    _check_keys(chat, ("history", "messages", "params", "system"), _ROW, told, "chat.")  # messages: the branch again
    _check_keys(parameters, ("system",), {}, told, "chat.params.")
    branch = _branch(messages, history.get("currentId"))
    if len(branch) < len(messages):
        told.add("chat.history.messages beside the branch of currentId")
    said = _said([{k: v for k, v in one.items() if k not in _TREE} for one in branch], "chat.history.messages", told)
    for number, message in enumerate(said, start=1):
        if message.role == "assistant" and (found := _DETAILS.search(message.text)):
            raise ExampleError(
                f"the content has a block of Open WebUI's, of type {found[1]!r}; take it out", f"message {number}"
            )
    return _chat(said, chat.get("system") or parameters.get("system"), told)


def _inner(value: Object, key: str) -> Object:
    """The object under a key; an empty one where there is none."""
    held = value.get(key)
    return held if isinstance(held, dict) else {}


def _branch(messages: Mapping[str, Object], place: Any) -> list[Object]:
    """The messages from the first one to that place."""
    branch: list[Object] = []
    while place is not None:
        if not isinstance(place, str) or place not in messages or len(branch) == len(messages):
            raise ExampleError(f"the branch of 'currentId' breaks off at the message {place!r}")
        branch.append(messages[place])
        place = branch[-1].get("parentId")
    return branch[::-1]


def _task(value: Object, told: set[str]) -> TaskExample:
    steps, choices = (_texts(value.get(name) or [], name) for name in ("steps", "choices"))
    if not steps:
        raise ExampleError("'steps' must be a list of at least one text")
    query, answer = (_text(value[name], f"'{name}'") for name in ("query", "answer"))
    if choices and answer not in choices:
        raise ExampleError(f"the answer {answer!r} is none of the choices {choices}")
    return TaskExample(tuple(steps), query, answer, tuple(dict.fromkeys(choices)))


FORMATS = (
    Format(("messages",), ("system", "tools"), partial(_conversation, "messages")),
    Format(("conversations",), ("system", "tools"), partial(_conversation, "conversations")),
    Format(("prompt", "completion"), ("system",), _completion),
    Format(("instruction", "output"), ("input", "history", "system"), _alpaca),
    Format(("chat",), (), _open_webui),
    Format(("steps", "query", "answer"), ("choices",), _task),
)


def _said(messages: Any, key: str, told: set[str]) -> list[_Message]:
    """The messages of a list, each with role and content or, as ShareGPT has them, from and value."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ExampleError(f"'{key}' must be a list of objects with role and content")
    said = []
    for number, message in enumerate(messages, start=1):
        try:
            said.append(_message(message, f"{key}.", told))
        except ExampleError as fault:
            raise ExampleError(fault.why, f"message {number}") from None
    return said


def _message(message: Object, within: str, told: set[str]) -> _Message:
    who, what = ("from", "value") if "role" not in message and "from" in message else ("role", "content")
    _check_keys(message, (who, what, "weight"), _MESSAGE, told, within)
    role = message.get(who)
    if not isinstance(role, str) or role not in ROLES:
        raise ExampleError(f"the role is {role!r}; it must be one of {', '.join(ROLES)}")
    weight, allowed = message.get("weight"), (0, 1) if ROLES[role] == "assistant" else (0,)
    if weight is not None and (isinstance(weight, bool) or weight not in allowed):
        raise ExampleError(f"the weight is {weight!r}; it must be 0 or 1, and of others than the assistant 0")
    return _Message(ROLES[role], _content(message.get(what), "the content", f"{within}{what}.", told), weight != 0)


def _content(content: Any, called: str, within: str, told: set[str]) -> str:
    """A text, or the texts of a list of parts, put together."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return _text(content, called)
    for part in content:
        if part.get("type") != "text":
            raise ExampleError(f"a part of {called} is of type {part.get('type')!r}; only 'text' is read")
        _check_keys(part, ("type", "text"), _MESSAGE, told, within)
    return _text("".join(_text(part.get("text"), f"a part of {called}") for part in content), called)


def _texts(texts: Any, key: str) -> list[str]:
    if not isinstance(texts, list):
        raise ExampleError(f"'{key}' is {texts!r:.60}; it must be a list of texts")
    return [_text(text, f"a text of '{key}'") for text in texts]


def _text(text: Any, what: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ExampleError(f"{what} is {'null' if text is None else f'{text!r:.60}'}; it must be some text")
    if HALF.search(text):
        raise ExampleError(
            f"{what} holds half of a surrogate pair, which is no character; was a text cut within an emoji?"
        )
    return text


def _chat(said: Sequence[_Message], system: Any, told: set[str]) -> Chat:
    """A conversation of what was said: a system's messages, then a user's and an assistant's in turn."""
    heads = next((i for i, message in enumerate(said) if message.role != "system"), len(said))
    before = [message.text for message in said[:heads]]
    if system:
        if before:
            raise ExampleError("has 'system' and a system's message; keep one of them")
        before = [_content(system, "'system'", "system.", told)]
    talk = said[heads:]
    for i, message in enumerate(talk):
        wanted = _SPEAKERS[i % 2]
        if message.role != wanted:
            why = "it stands before all others" if message.role == "system" else "roles must alternate"
            raise ExampleError(f"the role is {message.role!r}, expected {wanted!r}: {why}", f"message {heads + i + 1}")
    if len(talk) % 2:
        raise ExampleError("the last message is the user's; end with the assistant's reply")
    count = len(talk) // 2
    if count < 2:
        kind = TooShortError if count else ExampleError
        raise kind(
            f"{count} turn{'s' * (count != 1)} (a user's message and its reply); at least two are needed, one to "
            "remember and one to ask"
        )
    silent = frozenset(i for i, reply in enumerate(talk[1::2]) if not reply.learned)
    if silent >= {*range(1, count)}:
        raise ExampleError("no reply after the first has a weight above 0; nothing would be learned: leave it out")
    turns = zip(talk[::2], talk[1::2], strict=True)
    return Chat(tuple((user.text, reply.text) for user, reply in turns), "\n\n".join(before), silent)
