"""``ccm demo``: one question, answered in one parallel pass, from the memory built online, and without context."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.nn.functional import cross_entropy

from ccm.chat.reply import Reply, end_ids, reply_to
from ccm.chat.turns import Turns, make_turns
from ccm.cli.console import loading, plain_console, quiet
from ccm.core.errors import CCMError, InputError, reason
from ccm.core.units import size
from ccm.engine.decoder import CCMModel, as_decoder
from ccm.engine.layout import IGNORE, Sample, Step, build_layout
from ccm.engine.memory import Memory
from ccm.engine.sampling import Read
from ccm.models.load import load as load_model

MAX_REPLY = 48  # tokens


def run(choice: dict[str, Any], file: Path | None, *, as_json: bool = False) -> None:
    """Answer the question in all three ways, and print a table, or one JSON object.

    Raises:
        InputError: when the file is not an example.
        UnsupportedModelError: when the model is an encoder-decoder.
        CCMError: when the two paths differ, which is an error of this package.
    """
    quiet()
    example = read_example(file)
    with loading(choice):
        loaded, tokenizer = load_model(**choice)
    model = as_decoder(loaded, "the demo")
    turns = make_turns(tokenizer, model.config.turns)
    *context, question, expected = example
    steps = [Step(turns.exchange(*split_turn(line), first=i == 0).ids) for i, line in enumerate(context)]
    empty = memory = model.empty_memory(1, [model.head(turns.head)])
    with torch.no_grad():
        for step in steps:
            memory = model.compress(memory, torch.tensor([step.ids], device=model.device))
        later, alone = turns.prompt(question, first=not memory.begun[0]), turns.prompt(question, first=True)
        answer = [*turns.encode_reply(expected), turns.eos_id]
        parallel = _parallel(model, turns, steps, later, answer)
        online = _online(model, turns, memory, later, answer)
        nothing = _online(model, turns, empty, alone, answer)
    memory = model.close(memory)
    rows = {"parallel pass": parallel, "memory, step by step": online, "no context": nothing}
    if as_json:
        paths = [{"path": name, "reply": reply, "loss": loss} for name, (reply, loss) in rows.items()]
        held = {"entries": memory.entries[0], "bytes": memory.nbytes, "full_context_tokens": memory.tokens[0]}
        print(json.dumps({"question": question, "expected": expected, "paths": paths, **held}, ensure_ascii=False))
    else:
        _show(context, question, expected, rows, memory)
    if not _agree(parallel, online, model.base.dtype):
        raise CCMError("The parallel pass and the memory differ; please report this with the model and the example.")


def read_example(file: Path | None) -> list[str]:
    """The lines of an example: turns (``user | reply``), a question, the expected answer.

    Raises:
        InputError: when the file cannot be read or is too short.
    """
    try:
        text = (file or files("ccm.cli.commands").joinpath("demo.txt")).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The example {file} cannot be read: {reason(error)}.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 3:
        raise InputError(f"The example {file} has {len(lines)} lines; it needs a turn, a question and an answer.")
    return lines


def _agree(one: tuple[str, float], other: tuple[str, float], dtype: torch.dtype) -> bool:
    """Whether two rows are equal up to rounding; in half precision, rounding can change a greedy reply."""
    half = torch.finfo(dtype).bits < 32
    return abs(one[1] - other[1]) <= (5e-2 if half else 1e-3) and (half or one[0] == other[0])


def split_turn(line: str) -> tuple[str, str]:
    """The user's line and the reply."""
    user, _, reply = line.partition("|")
    return user.strip(), reply.strip()


def _parallel(
    model: CCMModel, turns: Turns, steps: list[Step], prompt: list[int], answer: list[int]
) -> tuple[str, float]:
    """Greedy reply and loss; each token comes from a parallel pass over the whole context."""

    def whole(ids: list[int], targets: list[int]) -> Any:
        layout = build_layout([Sample(steps, Step(ids, targets), turns.head)], model.config, model.rule, pad_id=0)
        return model(layout.to(model.device))

    said: list[int] = []

    def read(ids: Tensor) -> Tensor:
        said.extend(ids[0].tolist())
        last = [IGNORE] * (len(said) - 1) + [turns.eos_id]  # any target: it asks for the logits of this column
        return whole(said, last).logits  # (1, V): at the one target

    loss = whole(prompt + answer[:-1], [IGNORE] * (len(prompt) - 1) + answer).loss
    return _reply(model, turns, prompt, read), float(loss)


def _online(model: CCMModel, turns: Turns, memory: Memory, prompt: list[int], answer: list[int]) -> tuple[str, float]:
    """Greedy reply and loss after a memory."""
    whole = torch.tensor([prompt + answer[:-1]], device=model.device)
    logits = model.read(memory, whole)[0, len(prompt) - 1 :]
    loss = cross_entropy(logits.float(), torch.tensor(answer, device=model.device))
    read = model.reader(memory, model.close(memory).cache())
    return _reply(model, turns, prompt, read), float(loss)


def _reply(model: CCMModel, turns: Turns, prompt: list[int], read: Read) -> str:
    reply = Reply(turns, end_ids(model.base, turns.tokenizer), MAX_REPLY)
    for _ in reply_to(prompt, read, reply):
        pass
    return reply.text


def _show(context: list[str], question: str, expected: str, rows: dict[str, tuple[str, float]], memory: Memory) -> None:
    console = plain_console()
    for line in context:
        console.print(line, style="dim")
    console.print(Text.assemble((question, "bold"), f"   expected: {expected}\n"))
    table = Table("path", "reply", "loss")
    for name, (reply, loss) in rows.items():
        table.add_row(name, reply, f"{loss:.4f}")
    console.print(table)
    console.print(
        "The first row reads all turns at once, as in training; the second must equal it.\n"
        "loss: mean over the tokens of the expected answer\n"
        f"memory: {memory.entries[0]} entries, {size(memory.nbytes)}; "
        f"full context: {memory.tokens[0]} tokens, {size(memory.tokens[0] * memory.entry_nbytes)}"
    )
