"""Turns: from the text of a conversation to the tokens of its steps, and back.

separators    head          [BOS] system                            none without a system message
              first turn    [BOS] preamble text M | reply           M = reply separator, S = separator
              later turns             S    text M | reply           the EOS that closes it is a target, not of the step
chat          head          what the template writes before the first turn: BOS, system message, tool definitions
              first turn          <user> text </user> <assistant> | reply
              later turns   close <user> text </user> <assistant> | reply      close = what ends a reply

The head stays raw before all steps; steps that follow one another are what the template makes of the conversation. A
statement is a turn without M and reply. What people write is plain text (:mod:`ccm.core.plain_text`): separators and
chat templates alone have tokens that steer the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ccm.chat.turns.base import Message, Said, Turns, in_common
from ccm.chat.turns.separators import SeparatorTurns
from ccm.chat.turns.template import TemplateTurns
from ccm.core.config import TurnFormat
from ccm.core.plain_text import check_text

__all__ = ["Message", "Said", "SeparatorTurns", "TemplateTurns", "Turns", "in_common", "make_turns"]


def make_turns(
    tokenizer: PreTrainedTokenizerBase, form: TurnFormat, system: str = "", tools: Sequence[Mapping[str, Any]] = ()
) -> Turns:
    """The turns of that format.

    Args:
        tokenizer: of the base model.
        form: how turns read.
        system: the system message, which stands before all turns; a chat template may have one by itself.
        tools: definitions of tools, as ``apply_chat_template`` takes them.

    Raises:
        ConfigError: when the tokenizer lacks what the format needs, or the format cannot say what stands before.
        InputError: when the system message is no text.
    """
    kind = {"separators": SeparatorTurns, "chat": TemplateTurns}[form.template]
    return kind(tokenizer, form, check_text(system, "The system message"), tools)
