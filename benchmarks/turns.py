"""A late turn of a conversation beside an early one: time to the first token, and bytes held."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.common import Comparison, Options, Report, Subject, compare, time_in_turns
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling

EARLY, LATE, PROMPT = 4, 64, 20
RULES = {"merge N=8": (models.MERGE, 1.20), "concat N=2": (models.CONCAT, None), "full context": (models.FULL, None)}
SETTING = (
    f"Time to the first token, as a chat takes it: `model.reader` after a prompt of {PROMPT} tokens, batch 1, at turn "
    f"{LATE} beside turn {EARLY}; and the bytes of keys and values held. Every turn has {models.STEP_TOKENS} tokens."
)


def run(options: Options) -> Report:
    """Time all rules and both turns in one round."""
    prompt = models.random_ids(1, PROMPT, seed=99)
    memories: dict[str, dict[int, Memory]] = {}
    subjects: dict[str, Subject] = {}
    for name, (config, _) in RULES.items():
        model = models.ccm_model(config)
        memories[name] = {turn: models.remember(model, turn) for turn in (EARLY, LATE)}
        for turn, memory in memories[name].items():
            subjects[f"{name}, turn {turn}"] = Subject(partial(_first_token, model, memory, prompt))
    with torch.no_grad():
        taken = time_in_turns(subjects, options.times(8))
    compared = {
        name: compare(taken, f"{name}, turn {LATE}", f"{name}, turn {EARLY}", limit)
        for name, (_, limit) in RULES.items()
    }
    return _report(compared, memories)


def _first_token(model: CCMModel, memory: Memory, prompt: Tensor, _: None) -> Tensor:
    read = model.reader(memory, model.close(memory).cache())
    return Sampling().choose(read(prompt))


def _report(compared: dict[str, Comparison], memories: dict[str, dict[int, Memory]]) -> Report:
    columns = [
        "",
        f"ms, turn {EARLY}",
        f"ms, turn {LATE}",
        "ratio of medians",
        "median of ratios",
        "quartiles",
        "limit",
    ]
    columns += [f"KiB, turn {EARLY}", f"KiB, turn {LATE}", "ratio", "KiB a turn", "of full context"]
    rows, data = [], []
    a_turn = {name: (m[LATE].nbytes - m[EARLY].nbytes) / (LATE - EARLY) for name, m in memories.items()}
    for name, c in compared.items():
        early, late = memories[name][EARLY].nbytes, memories[name][LATE].nbytes
        share = a_turn[name] / a_turn["full context"]
        rows.append(
            [
                name,
                f"{c.reference_seconds * 1e3:.2f}",
                f"{c.seconds * 1e3:.2f}",
                f"**{c.ratio:.3f}**",
                f"{c.paired:.3f}",
                f"{c.low:.3f} to {c.high:.3f}",
                c.bound,
                f"{early / 1024:,.0f}",
                f"{late / 1024:,.0f}",
                f"{late / early:.2f}",
                f"{a_turn[name] / 1024:,.0f}",
                f"{share:.1%}",
            ]
        )
        data.append(asdict(c) | {"bytes_early": early, "bytes_late": late, "bytes_a_turn": a_turn[name]})
    return Report(f"Turn {LATE} beside turn {EARLY}", SETTING, columns, rows, data)
