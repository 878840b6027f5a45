"""``ccm adapters list``: the published adapters, or those in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from ccm.cli.console import plain_console, tell
from ccm.core.errors import AdapterError, ConfigError
from ccm.models.published import ADAPTERS, read_name


def run_list(folder: Path | None, *, as_json: bool) -> None:
    """The published sets, or the adapters in a folder: a table, or one JSON object a line.

    Raises:
        ConfigError: when there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}.")
    rows = [*_published()] if folder is None else [*_held(folder)]
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    console = plain_console()
    if folder is None:
        for row in rows:  # no table: a narrow one would break the addresses
            console.print(f"{row['name']}: {row['trained on']}\n  {row['address']}", soft_wrap=True)
        console.print("\nGet one set: ccm adapters download NAME; then ccm adapters import DIR --output DIR.")
    else:
        console.print(table_of(rows) if rows else f"There is no adapter in {folder}.")


def _published() -> Iterator[dict[str, str]]:
    for name, one in ADAPTERS.items():
        yield {"name": name, "trained on": one.about, "address": one.drive}


def _held(folder: Path) -> Iterator[dict[str, str]]:
    """Each adapter below a folder, the stage-1 adapters inside others left out."""
    from ccm.core.adapter_folders import CONFIG, PEFT_CONFIG, STAGE1, read_config

    for path in sorted([*folder.rglob(CONFIG), *folder.rglob(PEFT_CONFIG)]):
        place = path.parent
        if path.name == CONFIG:
            try:
                config = read_config(place)
            except AdapterError as error:
                tell(str(error))
                yield _row(place, "damaged", "", "", "")
            else:
                yield _row(place, "ours", config.rule, config.n_tok, config.base_model)
        elif not (place.name == STAGE1 and (place.parent / CONFIG).is_file()):
            said, base = read_name(place), _plain(place)
            known = (said.rule, said.n_tok, said.model) if said else ("unknown", "", "")
            yield _row(place, "to import", *known) if said or base is None else _row(place, "stage 1", "full", "", base)


def _plain(place: Path) -> str | None:
    """The base that a plain LoRA names; None of an adapter that compresses, or is damaged."""
    from ccm.engine.adapter_files import read_plain_lora
    from ccm.models.locate import base_name

    try:
        lora = read_plain_lora(place)
    except AdapterError:
        return None
    return None if lora.comp is not None else base_name(lora.settings.get("base_model_name_or_path") or "")


def _row(place: Path, kind: str, rule: str, n_tok: int | str, base: str) -> dict[str, str]:
    return {"folder": str(place), "kind": kind, "rule": rule, "N": str(n_tok), "base": base}


def table_of(rows: Sequence[dict[str, str]], *, head: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=head)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table
