"""``ccm stream``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ccm.cli.options import Lines, SamplingOptions, existing, unfold
from ccm.evaluation.settings import Selection


@unfold
def stream(
    files: Annotated[
        list[Path], typer.Argument(help="Texts, as they are or gzipped, or folders of such.", callback=existing())
    ],
    cache_size: Annotated[int, typer.Option(help="Most entries: sink, memory and recent text.")] = 160,
    span: Annotated[int, typer.Option(help="Tokens that are compressed at a time.")] = 64,
    memory_size: Annotated[int, typer.Option(help="Most entries of the memory.")] = 8,
    sink: Annotated[int, typer.Option(help="First tokens that stay in view.")] = 1,
    tolerance: Annotated[
        int, typer.Option(help="Compress at sentence ends, too, so many tokens before or after a span's end.")
    ] = 0,
    offset: Annotated[int, typer.Option(help="First token that is read (9000 in the authors' run).")] = 0,
    tokens: Annotated[int, typer.Option(help="Most tokens that are read; 0 is all (16000 in theirs).")] = 0,
    generate: Annotated[int, typer.Option(help="Go on after the end of a text, by so many tokens.")] = 0,
    json: Lines = False,
    *,
    sampling: SamplingOptions,
    selection: Selection,
) -> None:
    """Read texts of any length in a cache of fixed size, by several methods: perplexity along the text."""
    from ccm.cli.commands.stream import run
    from ccm.engine.sampling import Sampling
    from ccm.evaluation.streams import StreamRun
    from ccm.streams.evictions import StreamSettings

    settings = StreamSettings(cache_size, span, memory_size, sink, tolerance=tolerance)
    choosing = Sampling(**asdict(sampling))
    asked = StreamRun(files, selection, settings, offset=offset, tokens=tokens, generate=generate, sampling=choosing)
    run(asked, sampling.seed, as_json=json)
