"""Texts read as streams, by several methods side by side; a run that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ccm.chat.reply import end_ids
from ccm.core.errors import ConfigError, DataError
from ccm.core.extras import needs
from ccm.core.plain_text import PlainText
from ccm.data.reading import ROWS, ends, find_files, read_text
from ccm.engine.decoder import CCMModel
from ccm.engine.sampling import Sampling
from ccm.evaluation.methods import Method, Models, adapter_for, named_once, own_rules, read_configs, shipped_rules
from ccm.evaluation.settings import Selection
from ccm.evaluation.store import ResultStore, keeping
from ccm.evaluation.stream_results import Point, StreamResult, build_stream_result, draw_streams
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory

ENDINGS = (".txt", ".txt.gz")
BASELINES = ("window", "blocks")  # the evictions that need no adapter; the first one is the usual one
STRETCH = 512  # tokens between two points of the curve
SAVE_SECONDS = 5.0  # between two savings
STREAM = ".stream"  # how the file of a stream ends, beside its result
StreamReport = Callable[[StreamResult], None]


@dataclass(frozen=True)
class StreamMethod(Method):
    """A way to read a text.

    Attributes:
        settings: sizes of the cache, and how room is made in it.
    """

    settings: StreamSettings


@dataclass(frozen=True)
class StreamRun:
    """Which texts are read, and how.

    Attributes:
        files: texts, plain or gzipped, or folders of texts; each text is a stream of its own.
        selection: the methods, their base, and the folder for the results. Where neither rule nor adapter is named, the
            rule is that of the adapter which ships for the model; where no baseline is named, it is "window".
        settings: the sizes. A tolerance other than 0 adds methods beside those with fixed spans.
        offset: the first token that is read, after BOS.
        tokens: how many are read; 0 is all.
        generate: new tokens after the end of each text.
        sampling: how they are chosen; greedily where None.

    Raises:
        ConfigError: when a number is negative.
    """

    files: Sequence[Path]
    selection: Selection = field(default_factory=Selection)
    settings: StreamSettings = field(default_factory=StreamSettings)
    offset: int = 0
    tokens: int = 0
    generate: int = 0
    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        for name in ("offset", "tokens", "generate"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{name} is {value}; it must be at least 0.")


def stream_methods(selection: Selection, settings: StreamSettings) -> list[StreamMethod]:
    """The rules of a selection in their order, then the adapters under their own rules, then the baselines.

    Raises:
        ConfigError: when a rule runs with none of the adapters, there is no such baseline, two methods have the same
            name, or there is no method.
        AdapterError: when an adapter cannot be read.
    """
    configs = read_configs(selection.adapters)
    fixed = replace(settings, evict="compress", tolerance=0)
    rules = selection.rules or shipped_rules(selection)
    methods = [StreamMethod(rule, rule, adapter_for(configs, rule), fixed) for rule in rules]
    methods += [StreamMethod(**vars(method), settings=fixed) for method in own_rules(configs, rules)]
    if most := settings.tolerance:
        ends = replace(fixed, tolerance=most)
        methods += [replace(one, name=f"{one.name}, sentence ends ±{most}", settings=ends) for one in methods]
    for name in BASELINES[:1] if selection.baselines is None else selection.baselines:
        if name not in BASELINES:
            raise ConfigError(f"There is no baseline {name!r} of streams; there are {', '.join(BASELINES)}.")
        methods.append(StreamMethod(name, "none", adapter_for(configs, "none"), replace(fixed, evict=name)))
    return named_once(methods)


def run_streams(run: StreamRun, tell: StreamReport = lambda result: None) -> list[StreamResult]:
    """Read every text by every method.

    Args:
        run: what to read, and how. What its output folder holds is not read again; an interrupted stream goes on.
        tell: called whenever a stretch is read, with how far its stream has come.

    Returns:
        the results, method by method, text by text.

    Raises:
        ConfigError: when something cannot be read as asked.
        AdapterError, DataError: when files are absent, damaged, empty, or no text.
    """
    if run.selection.output is not None:
        needs("matplotlib", extra="eval", what="The picture of a report")
    selection = run.selection
    store = ResultStore(selection.output, "streams", build_stream_result)
    texts = read_texts(run.files)
    models, methods = Models(selection), stream_methods(selection, run.settings)
    found: dict[tuple[str, str], StreamResult] = {}
    for method in models.grouped(methods):
        compresses = method.settings.evict == "compress"
        model, tokenizer = models.load(method, n_tok=selection.n_tok if compresses else None)
        for name, text in texts.items():
            ids = _cut(run, name, text, tokenizer)
            identity = {
                "settings": asdict(method.settings),
                "origin": repr(model.origin) if compresses else (model.base_id, model.config.n_tok),
                "ids": hashlib.sha256(ids.numpy().tobytes()).hexdigest(),
                "dtype": str(model.base.dtype),
            }
            if selection.quantize:
                identity["quantize"] = selection.quantize
            path = store.path(method.name, name, identity)
            stream, result = _begin(StreamResult(method.name, name, ids.shape[1], []), store, path, model, tokenizer)
            stream = stream or StreamingMemory(model, method.settings, tokenizer)
            result = _read(stream, ids, result, store, path, tell)
            if run.generate:
                said = stream.generate(run.generate, run.sampling, ends=end_ids(model.base, tokenizer))
                result = replace(result, continued=tokenizer.decode(said[0].tolist(), skip_special_tokens=True))
                store.write(path, result)
            found[method.name, name] = result
    results = [found[method.name, name] for method in methods for name in texts]
    if selection.output is not None:
        store.write_lines("results.jsonl", (result.line() for result in results))
        with keeping(selection.output):
            draw_streams(results, selection.output / "perplexity.png")
    return results


def read_texts(files: Sequence[Path]) -> dict[str, str]:
    """The texts of files and folders, by names that tell them apart.

    Raises:
        DataError: when one is absent, empty, or no text.
    """
    paths = [*dict.fromkeys(path for file in files for path in find_files(file, ENDINGS))]
    found = {}
    for path in paths:
        if ends(path, ROWS):
            raise DataError(f"{path} holds conversations or tasks, not running text; give a text, such as FILE.txt.")
        text = read_text(path)
        if not text.strip():
            raise DataError(f"{path} is empty; give a file with some text.")
        alike = [other for other in paths if other.name == path.name]
        found[path.name if len(alike) == 1 else str(path)] = text
    return found


def _cut(run: StreamRun, name: str, text: str, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(1, T) the tokens of a text that are read, BOS before them."""
    ids = PlainText(tokenizer).encode(text)
    if run.offset >= len(ids):
        raise DataError(f"{name} has {len(ids)} tokens; an offset of {run.offset} leaves none of them.")
    read = ids[run.offset : run.offset + run.tokens if run.tokens else None]
    bos = tokenizer.bos_token_id
    whole = [*([] if bos is None else [bos]), *read]
    if len(whole) < 2:
        raise DataError(f"{name} has a single token, which nothing predicts; give a longer text.")
    return torch.tensor([whole])


def _begin(
    new: StreamResult,
    store: ResultStore[StreamResult],
    path: Path | None,
    model: CCMModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[StreamingMemory | None, StreamResult]:
    """What is kept of a stream; no stream and the new result where there is not all that it takes to go on."""
    kept = store.read(path)
    if path is None or kept is None or not (file := path.with_suffix(STREAM)).is_file():
        return None, new
    stream = StreamingMemory.load(file, model, tokenizer)
    points = [point for point in kept.points if point.read <= stream.tokens]  # the figures are written first
    if not points or points[-1].read != stream.tokens:
        return None, new
    return stream, replace(kept, points=points)


def _read(
    stream: StreamingMemory,
    ids: Tensor,
    begun: StreamResult,
    store: ResultStore[StreamResult],
    path: Path | None,
    tell: StreamReport,
) -> StreamResult:
    """The rest of a text, and now and then a copy of how far the stream has come."""
    result, saved = begun, time.monotonic()
    for result in _stretches(stream, ids, begun):
        if path is not None and (result.done or time.monotonic() - saved >= SAVE_SECONDS):
            store.write(path, result)
            stream.save(path.with_suffix(STREAM))
            saved = time.monotonic()
        tell(result)
    return result


def _stretches(stream: StreamingMemory, ids: Tensor, begun: StreamResult) -> Iterator[StreamResult]:
    """How far a stream has come, whenever a stretch of the rest is read."""
    if stream.tokens == ids.shape[1]:
        return
    at = begun.points[-1] if begun.points else Point(0, 0, 0.0, 0, 0.0)
    result, tokens, nll, seconds, largest = begun, at.tokens, at.nll, at.seconds, begun.largest
    since, read, stop, most = time.perf_counter(), stream.tokens, stream.tokens + STRETCH, stream.settings.cache_size
    held = stream.entries
    for part in stream.scored(ids[:, read:]):
        tokens, nll = tokens + part.shape[1], nll + part.sum().item()
        largest = max(largest, min(held + stream.tokens - read, most))  # before room was made
        read, held = stream.tokens, stream.entries
        if read < stop and read < ids.shape[1]:
            continue
        seconds += time.perf_counter() - since
        result = replace(
            result,
            points=[*result.points, Point(read, tokens, nll, held, seconds)],
            largest=largest,
            bytes=largest * stream.nbytes // held,
            evictions=stream.evictions,
        )
        yield result
        since, stop = time.perf_counter(), read + STRETCH
