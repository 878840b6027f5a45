"""``ccm adapters``: those of the authors, and your own for others."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from ccm.adapters.fusing import fuse_adapter
from ccm.adapters.importing import Choices, read_theirs
from ccm.adapters.sharing import CARD, facts, push, write_shared
from ccm.cli.commands.adapters_list import table_of
from ccm.cli.console import doing, interrupted, plain_console, quiet, tell
from ccm.core.adapter_folders import CONFIG, find_adapter, is_plain_lora
from ccm.core.errors import ConfigError
from ccm.engine.adapter_files import read_adapter, write_adapter
from ccm.evaluation.report import merged
from ccm.evaluation.results import Result, read_run


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
    console.print(table_of([{"": key, " ": value} for key, value in facts(saved).items()], head=False))
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
    with interrupted("Nothing was written."), doing(f"reading {folder}"):
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
    on_terminal = sys.stderr.isatty()  # where gdown has bars
    kept = interrupted("What has arrived is kept; the same command goes on from there.")
    with kept, nullcontext() if on_terminal else doing(f"downloading {name}"):
        adapters = download_adapters(name, folder, quiet=not on_terminal)
    for adapter in adapters:
        output = folder.parent / f"{name}-{adapter.name}"
        console.print(f"ccm adapters import {adapter} --output {output}", soft_wrap=True)


def run_merge(adapter: str, output: Path, base: str | None) -> None:
    """Write an adapter anew, on a base that has its stage-1 adapter in the weights.

    Raises:
        AdapterError: when it has none, is absent or damaged, or belongs to another base.
        ConfigError: when the base cannot be had.
    """
    quiet()
    with interrupted("Nothing was written; the same command begins again."), doing(f"merging {adapter}"):
        fuse_adapter(adapter, output, base)
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
            write_shared(place, Path(draft), name, base, measured)
            print((Path(draft) / CARD).read_text(encoding="utf-8"), end="")
        return
    with interrupted("The adapter was not sent as a whole; the same command sends it."), doing(f"sending {folder}"):
        address = push(place, name, base=base, results=measured, private=private)
    plain_console().print(f"The adapter is at {address}.")
