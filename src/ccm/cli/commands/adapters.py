"""``ccm adapters``: those of the authors, and your own for others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import typer
from rich.table import Table

from ccm.adapters.fusing import merge_adapter
from ccm.adapters.importing import Choices, read_theirs
from ccm.adapters.sharing import CARD, facts, push, stage
from ccm.cli.commands.chat import base_name
from ccm.cli.console import plain_console, quiet, tell
from ccm.core.errors import AdapterError, ConfigError
from ccm.engine.adapter_files import (
    CONFIG,
    PEFT_CONFIG,
    STAGE1,
    find_adapter,
    is_plain_lora,
    read_adapter,
    read_config,
    read_plain_lora,
    write_adapter,
)
from ccm.evaluation.report import merged
from ccm.evaluation.results import Result, read_run
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
        console.print(_table(rows) if rows else f"There is no adapter in {folder}.")


def _published() -> Iterator[dict[str, str]]:
    for name, one in ADAPTERS.items():
        yield {"name": name, "trained on": one.about, "address": one.drive}


def _held(folder: Path) -> Iterator[dict[str, str]]:
    """Each adapter below a folder, the stage-1 adapters inside others left out."""
    for path in sorted([*folder.rglob(CONFIG), *folder.rglob(PEFT_CONFIG)]):
        place = path.parent
        if path.name == CONFIG:
            config = read_config(place)
            yield _row(place, "ours", config.rule, config.n_tok, config.base_model)
        elif not (place.name == STAGE1 and (place.parent / CONFIG).is_file()):
            said, base = read_name(place), _plain(place)
            known = (said.rule, said.n_tok, said.model) if said else ("unknown", "", "")
            yield _row(place, "to import", *known) if said or base is None else _row(place, "stage 1", "full", "", base)


def _plain(place: Path) -> str | None:
    """The base that a plain LoRA names; None of an adapter that compresses, or is damaged."""
    try:
        lora = read_plain_lora(place)
    except AdapterError:
        return None
    return None if lora.comp is not None else base_name(lora.settings.get("base_model_name_or_path") or "")


def _row(place: Path, kind: str, rule: str, n_tok: int | str, base: str) -> dict[str, str]:
    return {"folder": str(place), "kind": kind, "rule": rule, "N": str(n_tok), "base": base}


def run_show(adapter: str, *, as_json: bool) -> None:
    """What an adapter is: one of ours in a folder or on the Hub, or one of the authors' as it would be imported.

    Raises:
        AdapterError: when it is absent or damaged.
    """
    place = Path(adapter)
    notes: tuple[str, ...] = ()
    if is_plain_lora(place):
        found = read_theirs(place, Choices(base_adapter="none"))
        saved, notes = found.adapter, found.assumed
    else:
        saved = read_adapter(find_adapter(adapter))
    if as_json:
        print(json.dumps({**facts(saved), "config": saved.config.to_dict(), "assumed": list(notes)}))
        return
    console = plain_console()
    console.print(_table([{"": key, " ": value} for key, value in facts(saved).items()], head=False))
    _tell(notes)
    if is_plain_lora(place) and saved.config.rule == "full":
        tell(
            f"\nA plain LoRA (stage 1): it acts on all tokens, and compresses nothing. Talk to it in full context with "
            f"ccm chat --adapter {place}; train a memory on it with ccm train ... --set base_adapter={place}; ccm "
            "adapters import makes it an adapter that can be measured."
        )


def run_import(folder: Path, output: Path, choices: Choices, *, yes: bool) -> None:
    """Import one of the authors' adapters. On a terminal, what is assumed has to be agreed to.

    Raises:
        AdapterError: when it is damaged, not whole, or contradicts its name, the choices or the base.
        ConfigError: when the base cannot be had, or the output is there already.
    """
    quiet()
    found = read_theirs(folder, choices)
    _tell(found.assumed)
    there = (output / CONFIG).is_file()
    if not yes and sys.stdin.isatty() and (found.assumed or there):
        question = f"{output} holds an adapter, which is replaced. Go on?" if there else "Is this right?"
        if not typer.confirm(question):
            raise ConfigError("Nothing was written; the options of ccm adapters import --help say it otherwise.")
    elif there and not yes:
        raise ConfigError(f"{output} holds an adapter already; --yes replaces it.")
    write_adapter(found.adapter, output)
    config = found.adapter.config
    tokens = "" if config.rule == "full" else f", N = {config.n_tok}"
    use = f"ccm chat --adapter {output}{'' if config.base_model else ' --model BASE'}"
    plain_console().print(f"Imported into {output}: {config.rule}{tokens}. Use it: {use}")


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        tell(f"assumed: {note}")


def run_download(name: str, output: Path | None) -> None:
    """Bring a set of the authors' adapters, and say how each is imported.

    Raises:
        ConfigError: when there is no such set, or gdown is not installed.
        AdapterError: when it cannot be had, or is damaged.
    """
    from ccm.adapters.drive import download_adapters

    folder = output or Path("adapters") / name
    console = plain_console()
    for adapter in download_adapters(name, folder, quiet=not sys.stderr.isatty()):
        output = folder.parent / f"{name}-{adapter.name}"
        console.print(f"ccm adapters import {adapter} --output {output}", soft_wrap=True)


def run_merge(adapter: str, output: Path, base: str | None) -> None:
    """Write an adapter anew, on a base that has its stage-1 adapter in the weights.

    Raises:
        AdapterError: when it has none, is absent or damaged, or belongs to another base.
        ConfigError: when the base cannot be had.
    """
    quiet()
    merge_adapter(adapter, output, base)
    use = "ccm evaluate custom --data FILE" if read_adapter(output).for_encoder else "ccm chat"
    plain_console().print(f"Merged into {output}. Use it: {use} --adapter {output} --quantize int8")


def run_push(
    folder: Path, name: str, base: str | None, results: Sequence[Path], *, private: bool, dry_run: bool
) -> None:
    """Send an adapter to the Hub with its model card, or show the card alone.

    Raises:
        AdapterError: when it is no whole adapter of ours, or the Hub does not take it.
        ConfigError: when its base is a folder of this machine.
        DataError: when a folder holds no whole evaluation.
    """
    place = find_adapter(folder)
    measured: list[list[Result]] = merged({run.name: read_run(run) for run in results})
    if dry_run:
        with TemporaryDirectory() as draft:
            stage(place, Path(draft), name, base, measured)
            print((Path(draft) / CARD).read_text(encoding="utf-8"), end="")
        return
    plain_console().print(f"The adapter is at {push(place, name, base=base, results=measured, private=private)}.")


def _table(rows: Sequence[dict[str, str]], *, head: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=head)
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table
