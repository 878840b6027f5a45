"""``ccm memory``: list, show, verify, delete and export what a server keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ccm.cli.commands.adapters_list import table_of
from ccm.cli.console import plain_console, tell
from ccm.core.errors import ConfigError, MemoryFileError
from ccm.core.units import size
from ccm.serving.store import FILE, KeptTurn, Store


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """The store in a folder, of whatever model.

    Raises:
        ConfigError: when there is none, or a server has it.
    """
    if not (folder / FILE).is_file():
        raise ConfigError(f"{folder} holds no store: {FILE} is missing. Name the folder of a server, as its --store.")
    with closing(Store(folder, None)) as store:
        yield store


def run_list(folder: Path, *, as_json: bool) -> None:
    """All turns: a table, or one JSON object a line."""
    with opened(folder) as store:
        rows = [*store.rows()]
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    shown = [
        {
            "id": row["id"],
            "after": row["previous"] or "",
            "key": row["key"],
            "created": datetime.fromtimestamp(row["created"]).isoformat(" ", "minutes"),
            "size": size(row["size"]),
        }
        for row in rows
    ]
    plain_console().print(table_of(shown) if shown else f"There is no turn in {folder}.")


def run_show(name: str, folder: Path) -> None:
    """A turn as JSON.

    Raises:
        ConfigError: when there is none of that id.
    """
    with opened(folder) as store:
        turn = _turn(store, name)
    told = {"id": turn.id, "previous": turn.previous, "asked": turn.asked, "answer": turn.answer}
    print(json.dumps(told, indent=2, ensure_ascii=False))


def run_verify(folder: Path) -> None:
    """Read every memory; the exit status is 1 where one is damaged."""
    with opened(folder) as store:
        names, damaged = [row["id"] for row in store.rows()], []
        for name in names:
            try:
                store.parts(store.owner_of(name), _turn(store, name).part)
            except MemoryFileError:
                damaged.append(name)
    for name in damaged:
        tell(f"The memory of {name} is damaged; delete it with ccm memory delete.")
    print(f"{len(names) - len(damaged)} of {len(names)} memories are whole.")
    if damaged:
        sys.exit(1)


def run_delete(name: str, folder: Path, *, cascade: bool) -> None:
    """Delete a turn, and say who holds what it said.

    Raises:
        ConfigError: when there is none of that id.
    """
    with opened(folder) as store:
        _turn(store, name)
        gone, left = store.delete(store.owner_of(name), name, cascade=cascade)
    print(f"Deleted: {', '.join(gone)}.")
    if left:
        print(f"{left} later turns hold what it said; delete them with --cascade, too.")


def run_export(name: str, file: Path, folder: Path, choice: dict[str, Any]) -> None:
    """Write the memory after a turn into a file.

    Raises:
        ConfigError: when there is no such turn, or the model is another.
        MemoryFileError: when the file cannot be written.
    """
    from ccm.engine.decoder import as_decoder
    from ccm.models.load import load
    from ccm.serving.backend import Backend

    with opened(folder) as store:
        parts, origin = store.parts(store.owner_of(name), _turn(store, name).part), store.origin
    model, tokenizer = load(**choice)
    backend = Backend(as_decoder(model, "a server"), tokenizer, "")
    if backend.origin != origin:
        raise ConfigError(f"{folder} is of another model, adapter or rule; name those of its server.")
    backend.unpack(parts).save(file)
    print(f"Go on with it: ccm chat --load {file}")


def _turn(store: Store, name: str) -> KeptTurn:
    turn = store.get(store.owner_of(name), name)
    if turn is None:
        raise ConfigError(f"There is no turn {name!r}; ccm memory list shows all.")
    return turn
