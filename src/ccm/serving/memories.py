"""Memories of turns: kept as parts, made again from their text, and rid of what is to be forgotten."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ccm.core.errors import InputError, MemoryFileError
from ccm.engine.memory import Memory
from ccm.serving.backend import Backend
from ccm.serving.kept import ERASED, ChangedError, KeptTurn, Part
from ccm.serving.packing import Packed, pack
from ccm.serving.store import Store
from ccm.serving.transcripts import Passage, Transcript

_TRIES = 20  # of a change whose memories go on meanwhile


class Heard(NamedTuple):
    """A turn that is to be kept.

    Attributes:
        turn: its own id, and what was asked and answered.
        packed: the memory after it, as it is kept after the one before it.
        transcript: what it added; None where this is not to be kept, or is not all that was before.
    """

    turn: KeptTurn
    packed: Packed
    transcript: Transcript | None


@dataclass(frozen=True)
class KeptMemory:
    """A memory, the id of the part that ends it, which is that of its turn, and how often it was changed."""

    memory: Memory
    part: str
    changed: int = 0


@dataclass(frozen=True)
class Forgotten:
    """What was done to forget a step.

    Attributes:
        exact: whether the step was taken out of the memories; else they were made from text again.
        changed: ids of turns whose memories no longer hold it.
        deleted: id of the turn whose exchange it was, where it had no other.
        text: what was said in the step; None where it was not kept.
        lost: how many steps of turns that were deleted before went with it: memories that are made from text lack them.
    """

    exact: bool
    changed: list[str]
    deleted: list[str]
    text: str | None
    lost: int


class RecentMemories:
    """The memories that were used last, at hand without the store.

    Args:
        room: bytes that they may take, with their heads; a head that several share is there once.
    """

    def __init__(self, room: int) -> None:
        self._room, self.taken = room, 0
        self._held = OrderedDict[tuple[bytes, str], KeptMemory]()
        self._heads = Counter[int]()  # how many share it, by the identity of the head

    def get(self, owner: bytes, name: str) -> KeptMemory | None:
        """The memory that a part ends, if it is at hand."""
        return self._held.get((owner, name))

    def put(self, owner: bytes, kept: KeptMemory) -> KeptMemory:
        """Have a memory at hand, in place of those that were used longest ago."""
        self.drop(owner, kept.part)
        self._held[owner, kept.part] = kept
        self._count(kept.memory, 1)
        while self.taken > self._room:
            self.drop(*next(iter(self._held)))
        return kept

    def drop(self, owner: bytes, name: str) -> None:
        """Let go of the memory that a part ends."""
        if (kept := self._held.pop((owner, name), None)) is not None:
            self._count(kept.memory, -1)

    def _count(self, memory: Memory, more: Literal[1, -1]) -> None:
        (head,) = memory.heads
        self.taken += more * memory.nbytes
        self._heads[id(head)] += more
        if self._heads[id(head)] == max(more, 0):  # the first that shares it, or none any more
            self.taken += more * sum(x.nbytes for x in (*head.keys, *head.values))
        if not self._heads[id(head)]:
            del self._heads[id(head)]


class Memories:
    """The memories of the turns in a store; one thread at a time uses them.

    Args:
        backend: the model.
        store: what is kept.
        room: bytes of the memories that were used last, which are at hand without the store.
    """

    def __init__(self, backend: Backend, store: Store, room: int = 0) -> None:
        self._backend, self._store = backend, store
        self._recent = RecentMemories(room)

    def get(self, owner: bytes, name: str) -> KeptMemory:
        """The memory after a turn.

        Raises:
            MemoryFileError: when it is damaged, or was made by another version of the model's settings.
            ChangedError: when it was deleted.
        """
        held = self._recent.get(owner, name)
        if held is not None and held.changed == self._store.changes(owner, name):
            return self._recent.put(owner, held)
        memory, data = None, list[bytes]()
        chain = self._store.chain(owner, name)
        for part in chain:
            if part.data is not None:
                data = [part.data] if part.whole else [*data, part.data]
                continue
            memory, data = self._backend.unpack(data) if data else memory, []
            memory, _ = self._replay(memory, part)
            data = [pack(memory)]
        return self._recent.put(owner, KeptMemory(self._backend.unpack(data), name, chain[-1].changed))

    def _replay(self, memory: Memory | None, part: Part) -> tuple[Memory, str]:
        """The memory after a part's text, and this text with the token ids that it was read as."""
        if part.text is None:
            raise MemoryFileError("The text of this memory was not kept, so that it cannot be made again.")
        if part.text == ERASED:
            return (memory or self._backend.replay(None, Transcript("", [], []))[0]), ERASED
        told = Transcript.loads(part.text)
        made, passages = self._backend.replay(memory, told)
        return made, replace(told, passages=passages).dumps()

    def add(self, owner: bytes, heard: Sequence[Heard], after: KeptMemory | None, memory: Memory) -> int:
        """Keep turns and their memories, each after the one before it: all of them, or none.

        Args:
            owner: whose they are.
            heard: the turns, one at least.
            after: the memory before them; None where there was none, or none is kept.
            memory: after the last of them.

        Returns:
            How many turns made way, where the quota was used up.

        Raises:
            StoreError: when they cannot be written.
            QuotaError: when they are more than the owner's quota.
            ChangedError: when the memory before them is another now, or gone.
        """
        kept, before = [], after.part if after else None
        for turn, packed, transcript in heard:
            text = None if transcript is None else transcript.dumps()
            kept.append((turn, _part(turn.id, packed, before, text)))
            before = turn.id
        gone = self._store.add(owner, kept, after.changed if after else 0)
        if after is not None:  # the conversation has gone on, and few go back
            self._recent.drop(owner, after.part)
        self._recent.put(owner, KeptMemory(memory, heard[-1].turn.id))
        return gone

    def _after(self, name: str, memory: Memory, before: KeptMemory | None, text: str | None) -> Part:
        """The part of a memory after another."""
        packed = self._backend.pack(memory, None if before is None else before.memory)
        return _part(name, packed, None if before is None else before.part, text)

    def delete(self, owner: bytes, name: str, *, cascade: bool) -> tuple[list[str], list[str]]:
        """Delete a turn, as :meth:`Store.delete`; memories that would be made from its text are made before."""
        for tried in range(1, _TRIES + 1):
            try:
                for holder, one in () if cascade else self._store.in_need(name):
                    self._make(holder, one)
                gone, left = self._store.delete(owner, name, cascade=cascade)
                break
            except ChangedError:  # a server went on meanwhile, and let go of memories that need it
                if tried == _TRIES:
                    raise
        for one in gone:
            self._recent.drop(owner, one)
        return gone, left

    def _make(self, owner: bytes, name: str, last: KeptMemory | None = None) -> KeptMemory:
        """Make the memory that ends with a part; ``last`` is that of the part before, where it is at hand."""
        part = self._store.part(name)
        if part.before is None or last is None or last.part != part.before:
            last = None if part.before is None else self.get(owner, part.before)
        memory, text = self._replay(None if last is None else last.memory, part)
        self._store.change([replace(self._after(name, memory, last, text), changed=part.changed)], was=[part])
        return KeptMemory(memory, name, part.changed)

    def rebuild(self) -> Iterator[tuple[int, int]]:
        """Make memories from text again: all of a store that is of another model, else those that are damaged, or
        left over where a rebuilding was stopped.

        Yields:
            How many are made, and of how many.

        Raises:
            InputError: when a text cannot be read by the model.
        """
        if self._store.origin == self._backend.origin:
            self._store.give_up_damaged()
        else:
            self._store.adopt(self._backend.origin, _without_ids)
        unmade, last = self._store.unmade(thinned=self._backend.adds), None
        for done, (owner, name) in enumerate(unmade):
            yield done, len(unmade)
            with suppress(ChangedError):  # a server deleted it, or forgot a step, meanwhile
                last = self._make(owner, name, last)
        yield len(unmade), len(unmade)

    def forget(self, owner: bytes, name: str, step: int) -> Forgotten:
        """Forget a step: no memory holds it any more, neither that of the turn nor any that followed the step.

        Texts of later steps may repeat what it said.

        Args:
            owner: whose the turn is.
            name: id of a turn.
            step: the number of a step in its memory, from 1.

        Raises:
            InputError: when the turn has no such step, or memories must be made from text that was not kept.
            ChangedError: when another step is forgotten meanwhile: then numbers may be those of others.
            MemoryFileError: when a memory is damaged.
        """
        if self._store.get(owner, name) is None:
            raise InputError(f"There is no turn {name!r}.")
        changed = self._store.changes(owner, name)
        for _ in range(_TRIES):
            with suppress(ChangedError):  # a server went on meanwhile: what it wrote holds the step, too
                return self._forget(owner, name, step)
            if self._store.changes(owner, name) != changed:
                raise ChangedError(
                    "A step was forgotten meanwhile; later ones have other numbers now. Look and ask again."
                )
        raise ChangedError("The conversation goes on again and again meanwhile. Ask again later.")

    def _forget(self, owner: bytes, name: str, step: int) -> Forgotten:
        place, first = step, None
        for part in self._store.chain(owner, name, whole=True):
            if 1 <= place <= part.steps:
                first = part
                break
            place -= part.steps
        if first is None:
            raise InputError(f"There is no step {step}; the memory of {name} has {step - place}.")
        tree = self._store.following(first.id)
        heads = [part.id for _, part in tree if part.whole or part.id == first.id]  # no other begins under another head
        exact = step > 1 and all(self._backend.forgets(self.get(owner, one).memory) for one in heads)
        if not exact and any(part.text is None for _, part in tree):
            raise InputError(
                "Memories that hold this step must be made again from the texts of the other steps, and these were not "
                "kept. Delete the turn and all that follow it."
            )
        turns = self._store.turns_of([part.id for _, part in tree])
        own = [first.id] if first.id in turns else []
        changed = [one for one in turns if first.steps > 1 or one not in own]
        gone, blank = (own, []) if first.steps == 1 else ([], own)
        held = [part for _, part in tree]
        parts = [*self._without(owner, held, step, place, exact=exact)]
        self._store.change(parts, was=held, tree=True, gone=gone, blank=blank, hidden=changed)
        said = Transcript.loads(first.text).passages[place - 1].said if first.text else []
        told = " ".join(str(message["content"]) for message in said) or None
        lost = 0 if exact else sum(part.steps for _, part in tree if part.text == ERASED)
        return Forgotten(exact, changed, gone, told, lost)

    def _without(self, owner: bytes, parts: Sequence[Part], step: int, place: int, *, exact: bool) -> Iterator[Part]:
        """A part whose step at ``place`` (from 1) is forgotten, and those that follow it, as they are without it."""
        first = parts[0]
        memories = {} if first.before is None else {first.before: self.get(owner, first.before)}
        waiting = Counter(part.before for part in parts)
        for part in parts:
            before = memories.get(part.before) if part.before is not None else None
            text = _without_passage(part.text, place) if part is first else part.text
            if exact:
                memory = self._backend.forget(self.get(owner, part.id).memory, step)
            else:
                begun = None if before is None else before.memory
                if step == 1 and text and (begun is None or not begun.begun[0]):
                    text = _without_ids(text, 1)  # what stands first now begins as a first step does
                memory, text = self._replay(begun, replace(part, text=text))
            yield replace(self._after(part.id, memory, before, text), changed=part.changed + 1)
            memories[part.id] = KeptMemory(memory, part.id)
            waiting[part.before] -= 1
            if part.before is not None and not waiting[part.before]:
                del memories[part.before]


def _part(name: str, packed: Packed, before: str | None, text: str | None) -> Part:
    return Part(name, before, packed.steps, whole=packed.whole, text=text, data=packed.data)


def _without_ids(text: str, count: int | None = None) -> str:
    """The text of a part, whose first ``count`` exchanges, or all, are to be read as the model of today reads them."""
    if text == ERASED:
        return ERASED
    told = Transcript.loads(text)
    anew = [passage._replace(ids=None, room=None) for passage in told.passages[:count]]
    return replace(told, passages=[*anew, *told.passages[len(anew) :]]).dumps()


def _without_passage(text: str | None, place: int) -> str | None:
    """The text of a part without one of its exchanges; other parts may still follow it."""
    if not text:
        return text
    told = Transcript.loads(text)
    left: list[Passage] = [passage for number, passage in enumerate(told.passages, 1) if number != place]
    return replace(told, passages=left).dumps() if left else ERASED
