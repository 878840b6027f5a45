"""``ccm memory``: what a server keeps."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccm.cli.console import counting, doing, interrupted, loading, plain_console, quiet, tell
from ccm.core.errors import ConfigError
from ccm.core.units import size
from ccm.serving.kept import ERASED, KeptTurn, Part
from ccm.serving.keys import Keys
from ccm.serving.store import Store, open_tables
from ccm.serving.transcripts import Transcript

if TYPE_CHECKING:
    from ccm.serving.backend import Backend
    from ccm.serving.memories import Memories


@contextmanager
def opened(place: str) -> Iterator[Store]:
    """The store at a place, of whatever model.

    Raises:
        ConfigError: when there is none, or a server has it to itself.
    """
    with closing(open_tables(place, make=False)) as tables:
        yield Store(tables, None)


def run_list(place: str, *, as_json: bool) -> None:
    """All turns, one a line; as JSON objects if that is asked for."""
    with opened(place) as store:
        rows = [*store.rows()]
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    for row in rows:
        when, after = datetime.fromtimestamp(row["created"]).isoformat(" ", "minutes"), row["previous"]
        told = f"{row['id']}  {when}  key {row['key']}  {size(row['size'])}{f'  after {after}' if after else ''}"
        plain_console().print(told, soft_wrap=True)
    if not rows:
        print(f"There is no turn in {store.tables.place}.")


def run_usage(place: str, *, as_json: bool) -> None:
    """Turns and bytes of each key, the largest first; as JSON objects if that is asked for."""
    with opened(place) as store:
        turns, held = Counter(row["key"] for row in store.rows()), store.held()
    for owner, taken in sorted(held.items(), key=lambda one: -one[1]):
        key = owner.hex()[:8]
        if as_json:
            print(json.dumps({"key": key, "turns": turns[key], "bytes": taken}))
        else:
            print(f"key {key}  {turns[key]:,} turns  {size(taken)} ({taken:,} bytes)")
    if not held and not as_json:
        print(f"There is no turn in {store.tables.place}.")


def run_show(name: str, place: str) -> None:
    """A turn as JSON, with the steps of its memory.

    Raises:
        ConfigError: when there is none of that id.
    """
    with opened(place) as store:
        turn = _turn(store, name)
        chain = store.chain(store.owner_of(name), turn.id, whole=True)
    told = {"id": turn.id, "previous": turn.previous, "asked": turn.asked, "answer": turn.answer}
    print(json.dumps({**told, "steps": [*_steps(chain)]}, indent=2, ensure_ascii=False))


def _steps(chain: Sequence[Part]) -> Iterator[dict[str, Any]]:
    """The steps of a memory in order, each with its number and its text, where this was kept."""
    number = 1
    for part in chain:
        passages = Transcript.loads(part.text).passages if part.text else []
        for said, reply, *_ in passages:
            yield {"step": number, "said": said, "reply": reply}
            number += 1
        for _ in range(part.steps - len(passages)):
            yield {"step": number, "text": "deleted" if part.text == ERASED else "not kept"}
            number += 1


def run_verify(place: str, *, as_json: bool) -> None:
    """Read every memory, and say which are damaged, or print one JSON object; the exit status is 1 where one is."""
    with opened(place) as store:
        count = len([*store.rows()])
        with counting("parts") as show:
            damaged = store.damaged(partial(show, "reading memories"))
    for name in damaged:
        tell(f"The memory of {name} is damaged.")
    told = f"{count - len(damaged)} of {count} memories are whole."
    print(json.dumps({"memories": count, "damaged": damaged}) if as_json else told)
    if damaged:
        tell("Mend them by ccm memory rebuild, where their text was kept; else delete them by ccm memory delete.")
        sys.exit(1)


def run_delete(name: str, place: str, choice: dict[str, Any], *, cascade: bool) -> None:
    """Delete a turn, and say who holds what it said.

    Raises:
        ConfigError: when there is none of that id.
    """
    with opened(place) as store:
        _turn(store, name)
        owner = store.owner_of(name)
        if cascade or not store.in_need(name):
            gone, left = store.delete(owner, name, cascade=cascade)
        else:  # the memories of later turns would be made from its text
            gone, left = _memories(store, choice).delete(owner, name, cascade=cascade)
        store.tables.compact()
    print(f"Deleted: {', '.join(gone)}.")
    if left:
        print(f"{len(left)} later turns hold what it said: {', '.join(left)}.")


def run_export(name: str, file: Path, place: str, choice: dict[str, Any]) -> None:
    """Write the memory after a turn into a file.

    Raises:
        ConfigError: when there is no such turn, or the model is another.
        MemoryFileError: when the file cannot be written.
    """
    with opened(place) as store:
        _turn(store, name)
        _memories(store, choice).get(store.owner_of(name), name).memory.save(file)
        file.chmod(0o600)  # as the store
    print(f"Go on with it: ccm chat --load {file}")


def run_import(file: Path, place: str, key: Path | None, choice: dict[str, Any]) -> None:
    """Keep the memory of a file as a turn.

    Raises:
        ConfigError: when the model is another, or the file of the key holds several.
        MemoryFileError: when the file holds no memory of one conversation of this model.
    """
    from ccm.serving.memories import Heard, Memories
    from ccm.serving.responses import KIND
    from ccm.serving.service import new_id

    owners = Keys(key).owners
    if len(owners) > 1:
        raise ConfigError(f"{key} holds {len(owners)} API keys; name a file with the one whose memory it becomes.")
    with opened(place) as store:
        backend = _backend(store, choice)
        turn = KeptTurn(new_id(KIND), None, {}, [], "", int(time.time()))
        memory = backend.load(file)
        Memories(backend, store).add(owners[0], [Heard(turn, backend.pack(memory, None), None)], None, memory)
    print(f"Go on with it: previous_response_id {turn.id}")


def run_rebuild(place: str, choice: dict[str, Any], *, drop: bool) -> None:
    """Make all memories again from text, by another model or adapter.

    Raises:
        ConfigError: when the text of some was not kept, and they are not to be dropped.
    """
    from ccm.serving.memories import Memories

    with opened(place) as store:
        backend = _load(choice)
        lost = [] if store.origin == backend.origin else store.textless()
        if lost and not drop:
            raise ConfigError(
                f"The text of {len(lost)} turns was not kept, so that their memories cannot be made again; the first "
                f"is {lost[0]}. Delete them with --drop, or serve the model that made them."
            )
        for name in lost:
            store.delete(store.owner_of(name), name, lossy=True)
        made = 0
        kept = interrupted("Memories that were made are kept; the same command goes on from there.")
        with kept, counting("memories") as show:
            for done, made in Memories(backend, store).rebuild():
                show("rebuilding", done, made)
        store.tables.compact()
    print(f"{made} memories were made again{f'; {len(lost)} turns were deleted' if lost else ''}.")


def run_forget(name: str, step: int, place: str, choice: dict[str, Any]) -> None:
    """Forget a step of a memory, in every memory that holds it.

    Raises:
        ConfigError: when there is no such turn, or the model is another.
        InputError: when there is no such step, or text that is needed was not kept.
    """
    with opened(place) as store:
        _turn(store, name)
        memories = _memories(store, choice)
        stopped = interrupted(f"Look with ccm memory show {name} whether the step is there, before you forget another.")
        with stopped, doing(f"forgetting step {step}"):
            done = memories.forget(store.owner_of(name), name, step)
            store.tables.compact()
    how = "It was taken out of" if done.exact else "Made again from text without it:"
    print(f"Step {step} is forgotten{f': {done.text}' if done.text else '.'}")
    print(f"{how} {len(done.changed)} memories. Later steps have other numbers now.")
    if done.lost:
        print(f"{done.lost} steps of turns that were deleted before are out of them, too.")
    if done.deleted:
        print(f"Deleted: {', '.join(done.deleted)}.")
    print("Texts of later steps are as they were: they may repeat what it said.")


def _load(choice: dict[str, Any]) -> Backend:
    from ccm.engine.decoder import as_decoder
    from ccm.models.load import load
    from ccm.serving.backend import Backend

    quiet()
    with loading(choice):
        model, tokenizer = load(**choice)
    return Backend(as_decoder(model, "a server"), tokenizer, "")


def _backend(store: Store, choice: dict[str, Any]) -> Backend:
    """The model of a store.

    Raises:
        ConfigError: when the one that was chosen is another.
    """
    backend = _load(choice)
    if backend.origin != store.origin:
        raise ConfigError(f"{store.tables.place} is of another model, adapter or rule; name those of its server.")
    return backend


def _memories(store: Store, choice: dict[str, Any]) -> Memories:
    from ccm.serving.memories import Memories

    return Memories(_backend(store, choice), store)


def _turn(store: Store, name: str) -> KeptTurn:
    turn = store.get(store.owner_of(name), name)
    if turn is None:
        raise ConfigError(f"There is no turn {name!r}; ccm memory list shows all.")
    return turn
