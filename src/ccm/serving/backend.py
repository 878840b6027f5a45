"""What a server asks of a model: conversations that go on from a memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ccm.chat.conversation import Conversation
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling
from ccm.serving.packing import unpack


class Backend:
    """One model behind a server.

    Attributes:
        name: what clients call it.
        origin: identity of model, adapter and rule; memories of one origin go on under no other.
        adds: whether a step only adds entries to the memory before it.
    """

    def __init__(self, model: CCMModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        said = json.dumps(model.origin.to_dict(), sort_keys=True)
        self.origin = hashlib.sha256(said.encode()).hexdigest()
        self.adds = model.rule.reversible

    def begin(
        self,
        memory: Memory | None,
        *,
        system: str,
        tools: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        endless: bool,
    ) -> Conversation:
        """A conversation that goes on from a memory, under a system message and tools of its own."""
        begun = Conversation(self.model, self.tokenizer, sampling=sampling, system=system, tools=tools, endless=endless)
        if memory is not None:
            begun.go_on(memory)
        return begun

    def unpack(self, parts: Sequence[bytes]) -> Memory:
        """The memory of parts that :func:`ccm.serving.packing.pack` made."""
        return unpack(parts, self.model)
