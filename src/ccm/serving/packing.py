"""Memories as bytes: whole, or the columns alone that a step added to the memory before it.

A memory is the columns of its parts, one after the other, with the records of the last. The keys and values of a head
are in none: its token ids are, and the model reads them again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from safetensors.torch import load, save

from ccm.core.errors import MemoryFileError
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory, StepRecord

_MANIFEST = "ccm_part"


def pack(memory: Memory, begin: int = 0) -> bytes:
    """The columns of one conversation from number ``begin`` on, and what else its memory knows, as safetensors."""
    part = memory.without(0, begin)
    told = {"steps": memory.steps[0], "head": memory.heads[0].ids, "closed": memory.closed}
    tensors = {name: tensor.contiguous() for name, tensor in part.tensors().items()}
    return save(tensors, {_MANIFEST: json.dumps(told)})


def unpack(parts: Sequence[bytes], model: CCMModel) -> Memory:
    """The memory of parts in order, on the model's device.

    Raises:
        MemoryFileError: when they are not what :func:`pack` gave for this model.
    """
    try:
        told = json.loads(_metadata(parts[-1]))
        held = [load(part) for part in parts]
        heads = (model.head(told["head"]),)
        steps = (tuple(StepRecord(*step) for step in told["steps"]),)
        one = [
            Memory.from_tensors(tensors, steps=steps, origin=model.origin, heads=heads, closed=told["closed"])
            for tensors in held
        ]
        memory = one[0] if len(one) == 1 else Memory.join(one)
        memory = replace(memory, offset=held[-1]["offset"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MemoryFileError(f"A kept memory is damaged: {error}.") from error
    return memory.to(model.device, model.base.dtype)


def _metadata(part: bytes) -> str:
    """The manifest of a part, from the header of its safetensors."""
    size = int.from_bytes(part[:8], "little")
    return json.loads(part[8 : 8 + size])["__metadata__"][_MANIFEST]
