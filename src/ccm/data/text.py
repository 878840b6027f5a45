"""Running text to train on: stretches of long texts, drawn without end; a file is read when it is drawn.

    a text   ..... [chunk | chunk | chunk | chunk] ........      each chunk is a step, the last one the query

A stretch may begin at any word. Files are drawn by their size, the texts of a file and the places in a text by length.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from ccm.chat.turns import Turns
from ccm.core.errors import DataError
from ccm.core.processes import get_logger
from ccm.data.examples import PlacedSamples, hold_out, tell_held_out
from ccm.data.kinds import Text
from ccm.data.reading import find_files
from ccm.data.settings import DataSettings
from ccm.engine.layout import Sample

SPLITS = ("train", "validation", "test")  # folders that divide a data set
_LOG = get_logger(__name__)
_WORD = re.compile(r"\s+")
_CHARACTERS = 8  # of a text that are read for a token, about twice as many as one has


@dataclass(frozen=True)
class Library:
    """Where texts are, and how they are read.

    Attributes:
        title: what people call it.
        endings: of the names of its files.
        folder: the folder to train on, where several splits lie side by side.
        read: a function from a file to its texts, one after the other.
        files: how many files are drawn at a time.
        texts: how many texts are drawn of each; the seeds of samples depend on both numbers.
    """

    title: str
    endings: tuple[str, ...]
    folder: str
    read: Callable[[Path], Iterator[str]]
    files: int
    texts: int


@dataclass(frozen=True)
class Stretches(PlacedSamples):
    """Stretches of running text, drawn without end. Sample number i is the same whenever it is asked for.

    Texts of less than a chunk and a query are passed over, and counted in the log.

    Attributes:
        library: how the files are read.
        files: to train on.
        held: files to evaluate on.
        turns: whose tokenizer is used.
        settings: tokens of a chunk, chunks of a sample, samples to evaluate on.
        seed: of all draws.
    """

    library: Library
    files: Sequence[Path]
    held: Sequence[Path]
    turns: Turns
    settings: DataSettings
    seed: int

    @property
    def longest(self) -> int:
        """Most text tokens of a sample, BOS included."""
        return self._tokens + 1

    @property
    def deepest(self) -> int:
        """Most context steps of a sample."""
        return self.settings.max_steps

    def held_out(self) -> list[Sample]:
        """Stretches of files that are not trained on, as deep as they can be."""
        if not self.held:
            return []
        settings = replace(self.settings, random_steps=False)
        return replace(self, files=self.held, held=(), settings=settings).pool(0, settings.eval_samples)

    def at(self, place: int) -> Sample:
        block, within = divmod(place, self.library.files * self.library.texts)
        drawn = self._block(block)
        text = drawn[within % len(drawn)]  # from the first again where some were too short
        rng = random.Random(f"{self.seed} steps {place}")
        return text.sample(self.turns, rng.randint(1, text.length) if self.settings.random_steps else text.length)

    @cached_property
    def _block(self) -> Callable[[int], list[Text]]:
        return lru_cache(maxsize=2)(self._draw)

    @cached_property
    def _sizes(self) -> list[int]:
        return [max(file.stat().st_size, 1) for file in self.files]

    def _draw(self, block: int) -> list[Text]:
        """Stretches of the texts that are drawn together."""
        rng = random.Random(f"{self.seed} texts {block}")
        files = rng.choices(self.files, self._sizes, k=self.library.files)
        texts = [text for file in files for text in drawn_texts(self.library.read(file), self.library.texts, rng)]
        found = [stretch for text in texts if (stretch := self._stretch(text, rng))]
        if not found:
            least = self.settings.query_chunks + 1
            raise DataError(
                f"None of {len(texts)} texts that were drawn from {', '.join(map(str, dict.fromkeys(files)))} has "
                f"{least} chunks of {self.settings.chunk_tokens} tokens; lower data.chunk_tokens, or give longer texts."
            )
        if len(found) < len(texts):
            _LOG.info("%d of %d texts of %s are too short.", len(texts) - len(found), len(texts), files)
        return found

    def _stretch(self, text: str, rng: random.Random) -> Text | None:
        """A stretch that begins at a random word; too near to the end of the text, it is the last that there is."""
        place = rng.randrange(len(text) + 1)
        word = _WORD.search(text, place) if place else None
        begin, read = word.end() if word else place, self._tokens * _CHARACTERS
        ids = self.turns.plain.encode(text[begin : begin + read])[: self._tokens]
        if len(ids) < self._tokens:
            ids = self.turns.plain.encode(text[-read:])[-self._tokens :]
        return Text.of(ids, self.settings.chunk_tokens, self.settings.query_chunks)

    @property
    def _tokens(self) -> int:
        return (self.settings.max_steps + self.settings.query_chunks) * self.settings.chunk_tokens


def drawn_texts(texts: Iterable[str], count: int, rng: random.Random) -> list[str]:
    """``count`` of the texts, a longer one the likelier, and maybe more than once; only so many are ever held."""
    drawn, characters = [""] * count, 0
    for text in texts:
        characters += len(text)
        for i in range(count):
            if rng.random() * characters < len(text):
                drawn[i] = text
    return drawn


def open_stretches(library: Library, settings: DataSettings, turns: Turns, seed: int) -> Stretches:
    """The texts of these settings.

    To evaluate on are the files of ``data.eval_path``, or else those of a folder ``validation``. Where there is
    neither, files are held out, a tenth at most.

    Raises:
        ConfigError: when the settings name no path, or have options, of which there are none.
        DataError: when there are no files.
    """
    settings.forbid_options()
    wanted = ", ".join("*" + ending for ending in library.endings)
    folder = settings.require_path(f"the folder of {library.title} ({wanted})")
    settings.check_chunks()
    files = find_files(split(folder, library.folder), library.endings)
    if settings.eval_path is not None:
        held = find_files(Path(settings.eval_path), library.endings)
    elif (folder / "validation").is_dir():
        held = find_files(folder / "validation", library.endings)
    else:
        held, groups = hold_out([[file] for file in files], settings.eval_samples, f"{seed} held out")
        files = [file for (file,) in groups]
        if not held:
            tell_held_out(0, settings, f"at most a tenth of {len(files)} files; data.eval_path may name others")
    return Stretches(library, files, held, turns, settings, seed)


def split(folder: Path, name: str) -> Path:
    """The folder of a split within another, or that itself, where it is not divided.

    Raises:
        DataError: when it is divided, but has no such split.
    """
    if (folder / name).is_dir():
        return folder / name
    if found := [other for other in SPLITS if (folder / other).is_dir()]:
        raise DataError(
            f"{folder} has no folder {name!r}, but {', '.join(found)}; name one of these, or its own folder."
        )
    return folder
