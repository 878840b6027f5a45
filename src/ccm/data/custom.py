"""Your own data: JSON lines of conversations or of steps, or plain text that is cut into chunks.

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}
    {"steps": ["...", "..."], "query": "...", "answer": "...", "choices": ["...", "..."]}      choices may be left out
    any .txt file, gzipped or not

Everything is read and checked before training begins; up to ten faults are reported at once, by line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ccm.config import build_settings, check_types
from ccm.data import tasks
from ccm.data.examples import Examples, hold_out
from ccm.data.questions import Question
from ccm.data.reading import find_files, read_text
from ccm.data.tasks import Replies, TaskSettings
from ccm.errors import ConfigError, DataError
from ccm.layout import IGNORE, Sample, Step
from ccm.recipe import DataSettings, Recipe
from ccm.turns import Turns, encode_text, make_turns

FAULTS = 10  # reported at once
TEXTS = (".txt", ".txt.gz")
SUFFIXES = (".jsonl", ".json", *TEXTS)
T = TypeVar("T")
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Chat:
    """Turns of a user and an assistant. A sample is its beginning; every reply is a target, the last is the query's."""

    turns: tuple[tuple[str, str], ...]
    system: str = ""

    @property
    def length(self) -> int:
        return len(self.turns) - 1

    def sample(self, turns: Turns, steps: int) -> Sample:
        if self.system:
            plain = turns.form.template == "separators" and not self.system[-1].isspace()
            preamble = self.system + "\n\n" if plain else self.system
            turns = make_turns(turns.tokenizer, replace(turns.form, preamble=preamble))
        read = [turns.exchange(user, reply, first=i == 0) for i, (user, reply) in enumerate(self.turns[: steps + 1])]
        return Sample(read[:-1], read[-1])

    def parts(self, most: int) -> Iterator[Chat]:
        """Stretches of at most ``most`` + 1 turns, in order; a last turn alone takes the one before along."""
        for turns in _stretches(self.turns, most):
            yield Chat(turns, self.system)

    def latest(self, steps: int) -> Chat:
        """The last turn, and as many before it."""
        return replace(self, turns=self.turns[-steps - 1 :])


@dataclass(frozen=True)
class Task:
    """Context steps, a query and its answer. A sample has the latest of the steps; the answer alone is a target.

    Where there is a choice, the answer is one of ``choices``; training makes nothing of the others.
    """

    steps: tuple[str, ...]
    query: str
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        return len(self.steps)

    def sample(self, turns: Turns, steps: int) -> Sample:
        kept = self.steps[-steps:] if steps else ()
        read = [Step(turns.statement(text, first=i == 0).ids) for i, text in enumerate(kept)]
        return Sample(read, turns.exchange(self.query, self.answer, first=not kept))

    def parts(self, most: int) -> Iterator[Task]:
        """The task with its latest ``most`` steps."""
        yield self.latest(most)

    def latest(self, steps: int) -> Task:
        """The task with as many of its latest steps."""
        return replace(self, steps=self.steps[-steps:] if steps else ())


@dataclass(frozen=True)
class Text:
    """Chunks of running text, as token ids. A sample is its beginning; of each chunk all tokens but one are targets.

    The last ``query`` chunks of a sample are read as one, on top of the memory of those before.
    """

    chunks: tuple[tuple[int, ...], ...]
    query: int = 1

    @staticmethod
    def of(ids: Sequence[int], size: int, query: int = 1) -> Text | None:
        """Token ids in chunks of ``size``, the last one shorter; None where none comes before the query."""
        chunks = tuple(tuple(ids[i : i + size]) for i in range(0, len(ids) - 1, size))  # one at the end teaches nothing
        return Text(chunks, query) if len(chunks) > query else None

    @property
    def length(self) -> int:
        return len(self.chunks) - self.query

    def sample(self, turns: Turns, steps: int) -> Sample:
        bos = turns.tokenizer.bos_token_id
        first = self.chunks[0] if bos is None else (bos, *self.chunks[0])
        chunks = (first, *self.chunks[1:])
        asked = (*chain.from_iterable(chunks[steps : steps + self.query]),)
        read = [Step(chunk, [*chunk[1:], IGNORE]) for chunk in (*chunks[:steps], asked)]
        return Sample(read[:-1], read[-1])

    def parts(self, most: int) -> Iterator[Text]:
        """Stretches of at most ``most`` chunks and a query, in order; a last one too short takes those before along."""
        for chunks in _stretches(self.chunks, most, self.query):
            yield Text(chunks, self.query)

    def latest(self, steps: int) -> Text:
        """The query, and as many chunks before it."""
        return Text(self.chunks[-steps - self.query :], self.query)


Example = Chat | Task | Text


def _stretches(items: tuple[T, ...], most: int, query: int = 1) -> Iterator[tuple[T, ...]]:
    for begin in range(0, len(items), most + query):
        begin = min(begin, len(items) - query - 1)
        yield items[begin : begin + most + query]


def open_data(recipe: Recipe, turns: Turns) -> Examples:
    """Read and check the files that a recipe names.

    Raises:
        ConfigError: when it names none.
        DataError: when one is absent, empty or malformed.
    """
    settings = recipe.data
    if settings.options:
        raise ConfigError(f"The data set 'custom' has no options; data.options is {dict(settings.options)}.")
    if settings.path is None:
        raise ConfigError("The data set 'custom' reads your own files; say which with --set data.path=FILE.")
    groups: Sequence[Sequence[Example]] = read_examples(settings.path, settings, turns)
    if settings.eval_path is not None:
        held = [*chain.from_iterable(read_examples(settings.eval_path, settings, turns))]
    else:
        held, groups = hold_out(groups, settings.eval_samples, f"{recipe.seed} held out")
    return Examples([*chain.from_iterable(groups)], held, turns, settings.random_steps, recipe.seed)


def read_examples(path: str | Path, settings: DataSettings, turns: Turns) -> list[list[Example]]:
    """All examples of a file, or of all files of a folder: those of a conversation together, a text's one by one.

    Raises:
        DataError: when there is nothing, or with up to ten faults by file and line.
    """
    files = find_files(Path(path), SUFFIXES)
    groups: list[list[Example]] = []
    faults: list[str] = []
    for file in files:
        found = _text(file, settings, turns) if file.name.endswith(TEXTS) else _lines(file, settings, turns)
        for where, item in found:
            if isinstance(item, str):
                faults.append(f"  {where}: {item}")
            else:
                groups.append(item)
            if len(faults) == FAULTS:
                break
        if len(faults) == FAULTS:
            break
    if faults:
        more = f" The first {FAULTS} faults, there may be more:" if len(faults) == FAULTS else ""
        raise DataError(f"{path} cannot be used.{more}\n" + "\n".join(faults))
    if not groups:
        raise DataError(f"{path} holds no example; give a file with some.")
    return groups


@dataclass(frozen=True)
class Options:
    """How your own data is evaluated; see :class:`ccm.recipe.DataSettings`.

    Attributes:
        max_steps: the deepest time step; longer conversations and texts are cut into stretches.
        max_step_tokens: most tokens of a step; a longer one is an error.
        chunk_tokens: of a step, where plain text is cut into chunks.
    """

    max_steps: int = 16
    max_step_tokens: int = 512
    chunk_tokens: int = 128

    def __post_init__(self) -> None:
        check_types(self, "task.options.")


class _Lengths(DataSettings):
    """Those of :class:`Options`, as the command calls them."""

    def called(self, name: str) -> str:
        return f"--{name.replace('_', '-')}"


@dataclass
class CustomTask(tasks.Task):
    """The last answer of each example, by the latest steps before it: accuracy over its choices, or perplexity.

    Every time step has the same targets; an example with fewer steps is asked with all that it has.

    Attributes:
        examples: what is measured.
        turns: how they become tokens.
    """

    examples: Sequence[Example]
    turns: Turns

    def __post_init__(self) -> None:
        deepest = max(example.length for example in self.examples)
        self.depths = [2**i for i in range(deepest.bit_length())] or [0]
        chosen = sum(bool(_choices(example)) for example in self.examples)
        if chosen not in (0, len(self.examples)):
            raise DataError(
                f"{chosen} of {len(self.examples)} examples have choices; a task is measured by accuracy, where all "
                "have them, or by perplexity, where none has. Make two files of them."
            )
        self.measures = "acc_norm" if chosen else "perplexity"
        self.replies = None if chosen else Replies()

    def questions(self, depth: int) -> Iterator[Question]:
        if depth < 0:
            raise ConfigError(f"There is no time step {depth}; it is a number of steps, from 0.")
        self.skipped, self.noted = Counter(), Counter()
        for example in self.examples:
            if example.length < depth:
                self.noted[f"fewer than {depth} steps, there are no more"] += 1
            cut = example.latest(max(depth, 1))
            sample, alone = (part.sample(self.turns, part.length) for part in (cut, cut.latest(0)))
            question = Question.of(sample, self.turns.eos_id, "custom", alone=alone)
            if isinstance(cut, Task) and cut.choices:
                answers = [self.turns.encode_reply(choice) for choice in cut.choices]
                right, before = cut.choices.index(cut.answer), question.query[-1:]
                question = replace(question, answers=answers, right=right, before=before)
            yield question if depth else question.alone()


def _choices(example: Example) -> tuple[str, ...]:
    return example.choices if isinstance(example, Task) else ()


def open_task(settings: TaskSettings, turns: Turns) -> CustomTask:
    """The examples of your own file or folder.

    Raises:
        ConfigError: when none is named, or options that there are not.
        DataError: when it is absent, empty or malformed.
    """
    if settings.path is None:
        raise ConfigError("The task 'custom' reads your own file or folder; name it as --data.")
    lengths = _Lengths(**vars(build_settings(Options, settings.options, "task.options")))
    return CustomTask([*chain.from_iterable(read_examples(settings.path, lengths, turns))], turns)


class _LineError(Exception):
    """What is wrong with a line."""


def _lines(file: Path, settings: DataSettings, turns: Turns) -> Iterator[tuple[str, list[Example] | str]]:
    """The examples of every line of a file of JSON lines, or what is wrong with it, with file and line."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):  # other marks may stand within JSON texts
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            parts: list[Example] = [*_parse(line).parts(settings.max_steps)]
            for part in parts:
                _check_length(part, settings, turns)
            yield where, parts
        except (_LineError, ConfigError) as fault:  # the model's chat template may refuse a conversation
            yield where, str(fault)


def _parse(line: str) -> Chat | Task:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _LineError(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, braces without end
        raise _LineError(f"not readable as JSON: {error}") from None
    if _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise _LineError("holds half of a surrogate pair, which is no character; was a text cut within an emoji?")
    if not isinstance(value, dict):
        raise _LineError(f"a {type(value).__name__}; every line is an object in braces")
    if "messages" in value:
        return _chat(value["messages"])
    if {"steps", "query", "answer"} <= value.keys():
        return _task(value)
    raise _LineError(f"has the keys {sorted(value)}; give 'messages', or 'steps' with 'query' and 'answer'")


def _chat(messages: Any) -> Chat:
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise _LineError("'messages' must be a list of objects with role and content")
    texts = []
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise _LineError(f"the content of message {number} is {content!r}; it must be some text")
        texts.append((role, content))
    system = texts.pop(0)[1] if texts and texts[0][0] == "system" else ""
    first = len(messages) - len(texts) + 1
    for i, (role, _) in enumerate(texts):
        wanted = ("user", "assistant")[i % 2]
        if role != wanted:
            raise _LineError(f"the role of message {first + i} is {role!r}, expected {wanted!r}: roles must alternate")
    if len(texts) % 2:
        raise _LineError("the last message is the user's; end with the assistant's reply")
    if len(texts) < 4:
        count = len(texts) // 2
        raise _LineError(
            f"{count} turn{'s' * (count != 1)} (a user's message and its reply); at least two are needed, one to "
            "remember and one to ask: leave the line out"
        )
    return Chat(tuple((texts[i][1], texts[i + 1][1]) for i in range(0, len(texts), 2)), system)


def _task(value: dict[str, Any]) -> Task:
    steps = value["steps"]
    if not isinstance(steps, list) or not steps or not all(isinstance(s, str) and s.strip() for s in steps):
        raise _LineError("'steps' must be a list of at least one text")
    for name in ("query", "answer"):
        if not isinstance(value[name], str) or not value[name].strip():
            raise _LineError(f"'{name}' is {value[name]!r}; it must be some text")
    choices = value.get("choices", [])
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise _LineError("'choices' must be a list of texts")
    if choices and value["answer"] not in choices:
        raise _LineError(f"the answer {value['answer']!r} is none of the choices {choices}")
    return Task(tuple(steps), value["query"], value["answer"], tuple(dict.fromkeys(choices)))


def _check_length(example: Example, settings: DataSettings, turns: Turns) -> None:
    sample = example.sample(turns, example.length)
    for step in (*sample.steps, sample.query):
        if len(step.ids) > settings.max_step_tokens:
            begins = turns.tokenizer.decode(step.ids[:40]).strip()[:40]
            raise _LineError(
                f"the step that begins {begins!r} has {len(step.ids)} tokens, at most {settings.max_step_tokens} are "
                f"allowed; shorten it, or raise {settings.called('max_step_tokens')}"
            )


def _text(file: Path, settings: DataSettings, turns: Turns) -> Iterator[tuple[str, list[Example] | str]]:
    """The chunks of a text file, in stretches of at most ``max_steps`` and a query; a file's last chunk is shorter."""
    check_chunks(settings)
    ids, size = encode_text(turns.tokenizer, read_text(file)), settings.chunk_tokens
    text = Text.of(ids, size, settings.query_chunks)
    if text is None:
        least, called = settings.query_chunks + 1, settings.called("chunk_tokens")
        yield file.name, f"{len(ids)} tokens; at least {least} chunks of {size} tokens are needed ({called})"
        return
    for part in text.parts(settings.max_steps):
        yield file.name, [part]


def check_chunks(settings: DataSettings) -> None:
    """See whether chunks of running text are short enough to be steps.

    Raises:
        ConfigError: where they are not.
    """
    if settings.chunk_tokens > settings.max_step_tokens:
        chunk, step = map(settings.called, ("chunk_tokens", "max_step_tokens"))
        raise ConfigError(
            f"{chunk} is {settings.chunk_tokens}, {step} {settings.max_step_tokens}; lower the one or raise the other."
        )
