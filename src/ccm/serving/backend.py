"""What a server asks of a model: conversations that go on from a memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ccm.chat.conversation import Conversation
from ccm.core.errors import MemoryFileError
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling
from ccm.serving.engine import Engine, EngineLimits
from ccm.serving.packing import Packed, begins, pack, unpack
from ccm.serving.transcripts import Passage, Transcript


class Backend:
    """One model behind a server.

    Args:
        model: the model.
        tokenizer: of its base model.
        name: what clients call it.
        limits: how many requests it takes on.

    Attributes:
        engine: runs requests on the model; conversations in it share the model's passes.
        name: what clients call it.
        origin: identity of model, adapter and rule; memories of one origin go on under no other.
        adds: whether a step only adds entries to the memory before it.
    """

    def __init__(
        self, model: CCMModel, tokenizer: PreTrainedTokenizerBase, name: str, limits: EngineLimits | None = None
    ) -> None:
        self.engine = Engine(model, limits)
        self.model, self.tokenizer, self.name = self.engine.model, tokenizer, name
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

    def replay(self, memory: Memory | None, transcript: Transcript) -> tuple[Memory, list[Passage]]:
        """The memory after the exchanges of a transcript, and these as they were read.

        Raises:
            InputError: when the model cannot read them.
        """
        begun = self.begin(memory, system=transcript.system, tools=transcript.tools, sampling=Sampling(), endless=True)
        for said, reply, ids, room in transcript.passages:
            begun.hear(said, reply, ids, room)
        steps = zip(transcript.passages, begun.read, begun.rooms, strict=True)
        return begun.memory, [passage._replace(ids=ids, room=room) for passage, ids, room in steps]

    def forgets(self, memory: Memory) -> bool:
        """Whether :meth:`forget` can take a step out of a memory; else the memory is made from text again."""
        return self.model.forgets(memory)

    def forget(self, memory: Memory, step: int) -> Memory:
        """The memory without a step (from 1), as if it had never been."""
        return self.model.forget(memory, step)

    def load(self, file: Path) -> Memory:
        """The memory of one conversation in a file.

        Raises:
            MemoryFileError: when it holds none of this model.
        """
        memory = self.model.load_memory(file)
        if memory.batch != 1:
            raise MemoryFileError(f"{file} holds {memory.batch} conversations; a turn is of one: save memory[row].")
        return memory

    def pack(self, memory: Memory, after: Memory | None) -> Packed:
        """A memory to be kept after an earlier one, or by itself: whole, or what it adds where its rule only adds."""
        steps = len(memory.steps[0])
        if after is None:
            return Packed(steps, True, pack(memory))
        steps -= len(after.steps[0])
        if self.adds and begins(memory, after):
            return Packed(steps, False, pack(memory, after))
        return Packed(steps, True, pack(memory))

    def unpack(self, parts: Sequence[bytes]) -> Memory:
        """The memory of parts that :func:`ccm.serving.packing.pack` made."""
        return unpack(parts, self.model)
