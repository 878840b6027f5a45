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
from ccm.engine.quantization import Quantization
from ccm.engine.sampling import Sampling
from ccm.evaluation.methods import Method, Models, adapter_for, named_once, own_rules
from ccm.evaluation.stream_results import KeptStreams, Point, StreamResult, stream_file
from ccm.models.builtin import NAME
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory

ENDINGS = (".txt", ".txt.gz")
BUILTIN_RULES = ("concat",)  # of the built-in model, where none is named
BASELINES = ("window", "blocks")  # the evictions that need no adapter
STRETCH = 512  # tokens between two points of the curve
SAVE_SECONDS = 5.0  # between two savings
Told = Callable[[StreamResult], None]


@dataclass(frozen=True)
class StreamMethod(Method):
    """How a text is read.

    Attributes:
        settings: sizes, and how room is made.
    """

    settings: StreamSettings


@dataclass(frozen=True)
class StreamRun:
    """Which texts are read, and how.

    Attributes:
        files: texts, as they are or gzipped, or folders of such; each is a stream of its own.
        model: the base; None is that of the adapters, or the built-in one.
        adapters: each under its own rule.
        rules: as well, each on the first adapter that it runs with; of the built-in model :data:`BUILTIN_RULES` where
            none is named.
        baselines: as well, of :data:`BASELINES`.
        settings: the sizes. Its tolerance, where it is not 0, is that of further methods, beside fixed spans.
        offset: the first token that is read, after BOS.
        tokens: how many; 0 is all.
        generate: new tokens after the end of each text.
        sampling: how these are chosen; greedily where None.
        n_tok, device, dtype, quantize: as of ``ccm.load``.
    """

    files: Sequence[Path]
    model: str | None = None
    adapters: Sequence[str] = ()
    rules: Sequence[str] = ()
    baselines: Sequence[str] = ("window",)
    settings: StreamSettings = field(default_factory=StreamSettings)
    offset: int = 0
    tokens: int = 0
    generate: int = 0
    sampling: Sampling | None = None
    n_tok: int | None = None
    device: str | None = None
    dtype: str = "auto"
    quantize: Quantization | None = None

    def __post_init__(self) -> None:
        for name in ("offset", "tokens", "generate"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{name} is {value}; it must be at least 0.")

    def methods(self) -> list[StreamMethod]:
        """Rules first, then the adapters under their own, then the baselines.

        Raises:
            ConfigError: when a rule runs with none of the adapters, there is no such baseline, something is named
                twice, or there is nothing to read with.
            AdapterError: when an adapter cannot be read.
        """
        fixed = replace(self.settings, evict="compress", tolerance=0)
        builtin = not self.adapters and self.model in (None, NAME)
        named = self.rules or (BUILTIN_RULES if builtin else ())
        found = [StreamMethod(rule, rule, adapter_for(self.adapters, rule), fixed) for rule in named]
        found += [StreamMethod(**vars(one), settings=fixed) for one in own_rules(self.adapters, named)]
        if most := self.settings.tolerance:
            ends = replace(fixed, tolerance=most)
            found += [replace(one, name=f"{one.name}, sentence ends ±{most}", settings=ends) for one in found]
        for baseline in self.baselines:
            if baseline not in BASELINES:
                raise ConfigError(f"There is no baseline {baseline!r} of streams; there are {', '.join(BASELINES)}.")
            adapter = adapter_for(self.adapters, "none")
            found.append(StreamMethod(baseline, "none", adapter, replace(fixed, evict=baseline)))
        return named_once(found)


def run_streams(run: StreamRun, output: Path | None = None, tell: Told = lambda result: None) -> list[StreamResult]:
    """Read every text by every method.

    Args:
        run: what to read, and how.
        output: folder that keeps results and streams; what it holds of the same is not read again, or read on.
        tell: called with how far a stream has come, whenever a stretch is read.

    Raises:
        ConfigError: when something cannot be read as asked.
        AdapterError, DataError: when files are absent, damaged, empty, or no text.
    """
    if output is not None:
        needs("matplotlib", extra="eval", what="The picture of a report")
    kept, results = KeptStreams(output), []
    texts = read_texts(run.files)
    models = Models(run.model, device=run.device, dtype=run.dtype, quantize=run.quantize)
    for method in run.methods():
        model, tokenizer = models.load(method, n_tok=run.n_tok if method.settings.evict == "compress" else None)
        for name, text in texts.items():
            ids = _cut(run, name, text, tokenizer)
            results.append(_read(run, method, name, ids, model, tokenizer, kept, tell))
    kept.finish(results)
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


def _read(
    run: StreamRun,
    method: StreamMethod,
    name: str,
    ids: Tensor,
    model: CCMModel,
    tokenizer: PreTrainedTokenizerBase,
    kept: KeptStreams,
    tell: Told,
) -> StreamResult:
    """One text by one method, from where it was left."""
    origin = repr(model.origin) if method.settings.evict == "compress" else (model.base_id, model.config.n_tok)
    digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    identity = {"settings": asdict(method.settings), "origin": origin, "ids": digest, "dtype": str(model.base.dtype)}
    if run.quantize:
        identity["quantize"] = run.quantize
    place = kept.place(method.name, name, identity)
    stream, result = _begun(place, StreamResult(method.name, name, ids.shape[1], []), kept, model, tokenizer)
    if stream is None:
        stream = StreamingMemory(model, method.settings, tokenizer)
    saved = time.monotonic()
    for further in _stretches(stream, ids, result):
        result = further
        if place is not None and (result.done or time.monotonic() - saved >= SAVE_SECONDS):
            kept.write(place, result)
            stream.save(stream_file(place))
            saved = time.monotonic()
        tell(result)
    if run.generate:
        said = stream.generate(run.generate, run.sampling, ends=end_ids(model.base, tokenizer))
        result = replace(result, continued=tokenizer.decode(said[0].tolist(), skip_special_tokens=True))
        kept.write(place, result)
    return result


def _begun(
    place: Path | None, new: StreamResult, kept: KeptStreams, model: CCMModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[StreamingMemory | None, StreamResult]:
    """What is kept of a stream; the new result, and no stream, where there is not all that it takes to go on."""
    found = kept.read(place)
    if place is None or found is None or not stream_file(place).is_file():
        return None, new
    stream = StreamingMemory.load(stream_file(place), model, tokenizer)
    points = [point for point in found.points if point.read <= stream.tokens]  # the figures are written first
    if not points or points[-1].read != stream.tokens:
        return None, new
    return stream, replace(found, points=points)


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
