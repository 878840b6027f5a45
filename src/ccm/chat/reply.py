"""Generation: the one loop that decodes tokens, and the replies that they become.

tokens   logits -> id -> read(id) -> logits -> ...       without end, of one row or a batch
Reply    id, id, ... -> which belong to the reply, whether it has ended, what of its text can be shown
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ccm.chat.turns import Turns, in_common
from ccm.core.errors import ConfigError
from ccm.engine.sampling import Read, Sampling, tokens

_BROKEN = "\ufffd"  # what decoders write for a character whose bytes are not all there


def end_ids(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every token that ends what a model writes: the tokenizer's EOS, and all that the model's settings name.

    Of those settings (``generation_config.json``) nothing else is taken over: how tokens are chosen, how many, and how
    they are computed, is said by :class:`Sampling` and by the memory.

    Raises:
        ConfigError: when what they name are no token ids of the model's vocabulary.
    """
    named, size = getattr(base.generation_config, "eos_token_id", None), base.config.get_text_config().vocab_size
    told = {"model's generation_config.json": named, "tokenizer": tokenizer.eos_token_id}
    ends: set[int] = set()
    for where, held in told.items():
        for token in held if isinstance(held, list | tuple) else [] if held is None else [held]:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < size:
                raise ConfigError(
                    f"The {where} names {token!r} as the end of a reply (eos_token_id); it must be a token id from 0 "
                    f"to {size - 1}, which are the model's, or a list of them."
                )
            ends.add(token)
    return frozenset(ends)


class Reply:
    """A reply that is being generated, id by id.

    Args:
        turns: how turns are written: a reply ends where a next turn begins, or by its closing token.
        ends: further tokens that end it (see :func:`end_ids`).
        most: tokens that it has at most.
        stops: texts at which it ends, too.

    Attributes:
        said: all ids that came, the one that ended it included.
        ids: those of the reply itself.
        text: what of it can be shown: pieces that no later id changes, all of it once it has ended.
        ended: whether nothing can follow.
        cut_off: whether it ended only since it has as many tokens as it may.
    """

    def __init__(self, turns: Turns, ends: Collection[int], most: int, stops: Sequence[str] = ()) -> None:
        self._turns, self._ends, self._most = turns, {*ends, turns.eos_id}, most
        self._stops = stops
        self.said: list[int] = []
        self.ids: list[int] = []
        self.text = self._decoded = ""
        self.ended = self.cut_off = False

    def add(self, token: int) -> str:
        """Take the next id, unless the reply has ended; returns the piece of text that can be shown now."""
        if self.ended:
            return ""
        self.said.append(token)
        if token in self._ends:
            self.ended = True
        else:
            self.ids.append(token)
            before = self._turns.cut(self.ids, self._stops)
            self.ids = self.ids if before is None else before
            self.cut_off = before is None and len(self.said) >= self._most
            self.ended = before is not None or self.cut_off
        text = self._turns.decode(self.ids)
        if not self.ended:  # a character may want more bytes, and a next turn may begin
            text = self._turns.decode(self.ids, but=self._turns.pending(self.ids, self._stops)).rstrip(_BROKEN).rstrip()
        if not text.startswith(self._decoded):  # bytes of an incomplete or invalid character
            text = text.rstrip(_BROKEN).rstrip()
        if self._decoded.startswith(text):
            return ""
        piece, self._decoded = text[len(in_common(text, self._decoded)) :], text
        self.text += piece
        return piece


def reply_to(
    prompt: Sequence[int],
    read: Read,
    reply: Reply,
    sampling: Sampling | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Generator[str, None, None]:
    """Yield the pieces of a reply to the token ids of a prompt, which fills ``reply``.

    Its last token is not read; ``read`` puts what it is given on its own device.
    """
    ids = torch.tensor([[*prompt]])
    logits = read(ids)
    for chosen in tokens(logits, read, sampling, before=ids.to(logits.device), generator=generator):
        if piece := reply.add(int(chosen)):
            yield piece
        if reply.ended:
            return


def replies_to(logits: Tensor, read: Read, replies: Sequence[Reply], sampling: Sampling | None = None) -> None:
    """Fill a reply for each row of a batch, after the logits (B, V) of their first tokens.

    Rows that have ended go along, unheard.
    """
    for chosen in tokens(logits, read, sampling):
        for reply, token in zip(replies, chosen.tolist(), strict=True):
            reply.add(token)
        if all(reply.ended for reply in replies):
            return
