"""Messages as exchanges."""

from __future__ import annotations

import pytest

from ccm.chat.exchanges import Exchanges
from ccm.core.errors import InputError


def message(role: str, content: str = "", **beside: object) -> dict:
    return {"role": role, "content": content, **beside}


def told(*messages: dict) -> Exchanges:
    found = Exchanges()
    for one in messages:
        found.add(one)
    return found


def test_a_reply_ends_an_exchange_and_a_call_of_a_tool_does_not() -> None:
    user, call, result = message("user", "a"), message("assistant", tool_calls=[{}]), message("tool", "b")
    found = told(message("system", "s"), user, call, result, message("assistant", "c"), user)
    assert found.system == ["s"]
    assert found.exchanges == [([user, call, result], "c")]
    assert found.asked == [user]
    found.check_asked()
    assert told(message("assistant", "c")).exchanges == [([], "c")], "nobody asked for it"


@pytest.mark.parametrize("last", [message("assistant", "c"), message("assistant", tool_calls=[{}])])
def test_a_chat_must_end_with_what_a_reply_is_to_follow(last: dict) -> None:
    with pytest.raises(InputError, match="The chat asks for nothing"):
        told(message("user", "a"), last).check_asked()


def test_a_system_message_stands_before_all_others() -> None:
    with pytest.raises(InputError, match="stands after others"):
        told(message("user", "a"), message("system", "s"))
