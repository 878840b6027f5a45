"""Memories as bytes: whole, or the columns alone that a step added to the memory before it.

A memory is the columns of its parts, one after the other. The first part names the token ids of its head, which the
model reads again; each part has the records of its own steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from ccm.core.errors import MemoryFileError
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory, StepRecord

_MANIFEST = "ccm_part"


class Packed(NamedTuple):
    """A memory as it is kept after another.

    Attributes:
        steps: how many it has beyond that one.
        whole: whether the data hold all of it.
        data: what :func:`unpack` takes.
    """

    steps: int
    whole: bool
    data: bytes


def pack(memory: Memory, after: Memory | None = None) -> bytes:
    """One conversation as safetensors: all of it, or what it has beyond an earlier memory (see :func:`begins`)."""
    columns, steps = (0, 0) if after is None else (after.width, len(after.steps[0]))
    told = {"steps": memory.steps[0][steps:], "closed": memory.closed}
    if after is None:
        told["head"] = memory.heads[0].ids
    tensors = {name: tensor.contiguous() for name, tensor in memory.without(0, columns).tensors().items()}
    return save(tensors, {_MANIFEST: json.dumps(told)})


def begins(memory: Memory, earlier: Memory) -> bool:
    """Whether a memory is an earlier one under the same head with further steps."""
    steps = len(earlier.steps[0])
    if memory.width < earlier.width or memory.steps[0][:steps] != earlier.steps[0]:
        return False
    if memory.heads[0].ids != earlier.heads[0].ids or memory.closed != earlier.closed:
        return False
    pairs = zip((*memory.keys, *memory.values), (*earlier.keys, *earlier.values), strict=True)
    return all(torch.equal(x[:, :, : earlier.width], y) for x, y in pairs)


def unpack(parts: Sequence[bytes], model: CCMModel) -> Memory:
    """The memory of parts in order, on the model's device.

    Raises:
        MemoryFileError: when they are not what :func:`pack` made for this model.
    """
    try:
        told = [_manifest(part) for part in parts]
        steps = tuple(StepRecord(*step) for one in told for step in one["steps"])
        fields: dict[str, Any] = {"steps": (steps,), "origin": model.origin, "closed": told[-1]["closed"]}
        fields["heads"] = (model.head(told[0]["head"]),)
        held = [Memory.from_tensors(load(part), **fields) for part in parts]
        memory = held[0] if len(held) == 1 else Memory.join(held)
    except (KeyError, TypeError, ValueError, IndexError, SafetensorError) as error:
        raise MemoryFileError(f"A kept memory is damaged: {error}.") from error
    return replace(memory, offset=held[-1].offset).to(model.device, model.base.dtype)


def _manifest(part: bytes) -> dict[str, Any]:
    """What a part says beside its tensors, in the header of its safetensors."""
    size = int.from_bytes(part[:8], "little")
    return json.loads(json.loads(part[8 : 8 + size])["__metadata__"][_MANIFEST])
