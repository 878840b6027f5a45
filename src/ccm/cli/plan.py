"""``ccm plan``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from ccm.cli.options import unfold


@dataclass(frozen=True)
class ShapeOptions:
    """A model, or its sizes where it is not at hand; and an adapter, or its rule and N."""

    model: str | None = None
    adapter: str | None = None
    rule: str | None = None
    n_tok: Annotated[int | None, typer.Option(help="COMP tokens of a turn (the adapter's own; without one, 2).")] = None
    dtype: Annotated[
        str, typer.Option(help="Of keys and values, float32 on a CPU (auto: the checkpoint's, or bfloat16).")
    ] = "auto"
    layers: Annotated[int | None, typer.Option(help="In place of --model: layers.")] = None
    kv_heads: Annotated[int | None, typer.Option(help="In place of --model: K/V heads of a layer.")] = None
    head_size: Annotated[int | None, typer.Option(help="In place of --model: dimension of a head.")] = None
    positions: Annotated[
        int | None, typer.Option(help="In place of --model: positions that it was made for (no limit).")
    ] = None


@unfold
def plan(
    shape: ShapeOptions,
    conversations: Annotated[int, typer.Option(help="Conversations that are kept.")] = 1000,
    turns: Annotated[int, typer.Option(help="Turns of each.")] = 100,
    turn_tokens: Annotated[int, typer.Option(help="Tokens of a turn: what is said, and the reply.")] = 200,
    system_tokens: Annotated[int, typer.Option(help="Tokens of the system message and tools.")] = 0,
    rate: Annotated[float, typer.Option(help="Turns a second, over all conversations.")] = 10.0,
    memory: Annotated[float, typer.Option(help="GB of the accelerator that the weights leave.")] = 16.0,
    store: Annotated[float, typer.Option(help="GB that the store may take, such as the memory of a Redis.")] = 64.0,
    network: Annotated[float, typer.Option(help="Gbit/s between server and store.")] = 10.0,
    quota: Annotated[int, typer.Option(help="MiB that a key may keep, as of ccm serve.")] = 1024,
    batch: Annotated[int, typer.Option(help="Requests that use the model together, as of ccm serve.")] = 16,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """How many conversations a machine holds, by rule: K/V, storage, traffic, and where it ends. Loads no weights."""
    from ccm.cli.console import importing

    with importing():
        from ccm.cli.commands.plan import run
        from ccm.serving.capacity import Machine, Workload
        from ccm.serving.settings import MIB, ServerSettings

    load = Workload(conversations, turns, turn_tokens, system_tokens, rate)
    settings = ServerSettings(quota=quota * MIB, batch=batch)
    run(shape, load, Machine(memory, store, network), settings, as_json=json)
