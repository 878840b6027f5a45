"""The group of the data sets: which examples are kept, and the token ids that they become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ccm.chat.turns import make_turns
from ccm.core.config import CCMConfig, TurnFormat
from ccm.core.rules import make_rule
from ccm.data import lamp
from ccm.data.dailydialog import CORPUS as DAILY
from ccm.data.dailydialog import tidy as tidy_daily
from ccm.data.dialogue import Dialogue
from ccm.data.metaicl import MetaICLExample, Prompt, demonstrations_for, distinct
from ccm.data.soda import CORPUS as SODA
from ccm.data.soda import tidy as tidy_soda
from ccm.engine.layout import IGNORE, Sample, Step, build_layout
from conformance.goldens import Differences, Goldens

EXAMPLE = 20  # the most tokens of an example in the recorded corpus


class _Numbers:
    """A substitute for a tokenizer: a text consists of its token ids as decimal numbers."""

    bos_token_id, eos_token_id, unk_token_id = 1, 2, None
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __call__(self, texts: Sequence[str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[self.encode(text) for text in texts])

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(number) for number in text.replace("a", "0 ").replace("|", "13 14 15").split()]


_TURNS = make_turns(cast(PreTrainedTokenizerBase, _Numbers()), TurnFormat(separator="|", reply_separator="|"))


def _written(turns: list[list[int]]) -> tuple[str, ...]:
    """Write recorded turns as texts for :class:`_Numbers`."""
    return tuple(" ".join(map(str, turn)) for turn in turns)


def _dialogues(recorded: dict[str, Any]) -> Iterator[tuple[str, Differences]]:
    for case in recorded["preprocess"]:
        tidied = (tidy_daily(case["text"]), tidy_soda(case["text"]))
        yield "dialogue text", {"layout": float(tidied != (case["daily_dialog"], case["soda"]))}
    lengths, kept = recorded["threshold"]["turn_lengths"], recorded["threshold"]["kept_indices"]
    longest = {
        "daily_train_400": (DAILY, 400),
        "daily_eval_600": (DAILY, 600),
        "soda_512": (SODA, 512),
    }
    for name, (corpus, most) in longest.items():
        ours = [i for i, counts in enumerate(lengths) if corpus.fits(counts, most)]
        yield f"dialogue filter {name}", {"layout": float(ours != kept[name])}
    for name, corpus in (("daily", DAILY), ("soda", SODA)):
        for case, count in zip(recorded["subsample"][name].values(), corpus.depths.values(), strict=True):
            long_enough = [i for i, turns in enumerate(recorded["subsample"]["turn_counts"]) if turns >= count]
            differs = (long_enough, [count]) != (case["kept"], case["turns_of_each_kept"])
            yield f"dialogue depth {name}", {"layout": float(differs)}
    for case in recorded["sample_dialog"]:
        ids, targets = _dialogue(case)
        yield (
            f"dialogue {case['attn_type']}",
            {"layout": float([ids, targets] != [case["input_ids"], case["output_ids"]])},
        )


def _dialogue(case: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The input and output ids of a recorded dialogue, by ccm."""
    drawn = np.random.RandomState(case["np_seed"]).randint(3, len(case["dialog"]) + 1)
    steps = (drawn if case["is_train"] else len(case["dialog"])) - 2
    texts = _written(case["dialog"])
    sample = Dialogue(texts).sample(_TURNS, 0 if case["comp_type"] == "neg_control" else steps)
    if case["comp_type"] == "neg_control":  # only the last two turns
        sample = Dialogue(texts[steps : steps + 2]).sample(_TURNS, 0)
    targets = [target for target in sample.query.targets if target != IGNORE]
    prompt = [*sample.query.ids[: len(sample.query.ids) - len(targets) + 1]]
    return with_comp([[*step.ids] for step in sample.steps], prompt, case), targets


def with_comp(steps: list[list[int]], query: list[int], case: dict[str, Any]) -> list[int]:
    """Insert COMP and SUM tokens into steps and query where a recorded case has them; ccm itself has no SUM tokens."""
    n, online, rule = case["n_tok"], case["comp_type"] == "online", case["attn_type"]
    comp, total = [*range(200, 200 + n)], [*range(200 + n, 200 + 2 * n)]
    each = [*comp, *(total if rule == "merge_recur" else [])] if online else []
    once = comp if case["comp_type"] in ("fixed", "pos_control") else total if online and rule == "merge" else []
    if not steps:  # SUM stands between BOS and the query
        return [*query[:1], *once, *query[1:]]
    return [*(token for step in steps for token in (*step, *each)), *once, *query]


def prompt_of(special: dict[str, Any], *, bos: bool = True) -> Prompt:
    """The prompt format of the recorded cases."""
    return Prompt(special["input_prefix"], special["output_prefix"], special["bos"] if bos else None)


def examples(table: dict[str, Any], prompt: Prompt) -> list[MetaICLExample]:
    """The examples of a recorded task or pool that ccm keeps."""
    options = table.get("options") or [[]] * len(table["input"])
    rows = [MetaICLExample(*row) for row in zip(table["input"], table["output"], options, strict=True)]
    return [example for example in rows if prompt.fits(example, EXAMPLE)]


def check_data(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Texts, filters, choices and layouts of the authors' data sets."""
    yield from _dialogues(goldens.json("data/dialogue_cases.json"))
    yield from _lamp(goldens.json("data/lamp_cases.json"))
    recorded = goldens.json("data/metaicl_cases.json")
    raw = goldens.json("data/metaicl_raw.json")
    for number, case in enumerate(recorded["cases"]):
        yield f"metaicl {number} {case['label']}", {"layout": float(_case(case, raw) != case["input_ids"])}
    for case in recorded["delete_duplicates"]:
        yield "metaicl options", {"layout": float(distinct(case["options"]) != case["result"])}
    for case in goldens.json("data/unified_batch.json"):
        yield f"mixture {case['attn_type']}", {"layout": float(_mixed(case, raw) != _recorded(case))}


def _mixed(case: dict[str, Any], raw: dict[str, Any]) -> list[list[list[int]]]:
    """For each column of a recorded batch: its id, its target, and 1 unless it is padding; by ccm."""
    (example, dialogue), generator = case["rows"], np.random.RandomState(case["np_seed"])
    prompt = prompt_of(raw["special"])
    task, index = example["metaicl_train"].values()
    pool = examples(raw["raw"]["train"][task], prompt)
    drawn = [pool[i] for i in training_choice(generator, case["k"], len(pool), index)]
    asked = prompt.question(MetaICLExample(pool[index].input, pool[index].output), drawn, case["max_length"], task)
    answer = [*asked.answers[0], _Numbers.eos_token_id]
    query = Step([*asked.query, *answer[:-1]], [*[IGNORE] * (len(asked.query) - 1), *answer])
    told = Dialogue(_written(dialogue["dialog"])).sample(_TURNS, generator.randint(3, len(dialogue["dialog"]) + 1) - 2)
    samples = [Sample([*map(Step, asked.steps)], query), Sample([Step(step.ids) for step in told.steps], told.query)]
    layout = build_layout(samples, CCMConfig(n_tok=case["n_tok"]), make_rule("concat"), pad_id=0)
    ids = torch.where(layout.slots < 0, layout.ids, 200 + layout.slots)
    return torch.stack([ids, layout.targets, (layout.blocks >= 0).long()], dim=-1).tolist()


def _recorded(case: dict[str, Any]) -> list[list[list[int]]]:
    """The same table for the authors' batch, without SUM tokens and the final EOS, which ccm does not have.

    A label of the authors belongs to the token before it.
    """
    rows = []
    for columns in zip(case["input_ids"], case["labels"], case["attention_mask"], strict=True):
        text = [(i, label) for i, label, real in zip(*columns, strict=True) if real and i < 200 + case["n_tok"]]
        rows.append([[i, target, 1] for (i, _), (_, target) in pairwise(text)])
    width = max(map(len, rows))
    return [[[0, IGNORE, 0]] * (width - len(row)) + row for row in rows]


def _case(case: dict[str, Any], raw: dict[str, Any]) -> list[int]:
    """The ids of a recorded case, by ccm, with the COMP tokens of the rule."""
    special, tables = raw["special"], raw["raw"]
    prompt = prompt_of(special, bos=not case["t5"])
    if case["split"] == "train":
        pool = examples(tables["train"][case["task"]], prompt)
        drawn = training_choice(
            np.random.RandomState(case["np_seed"]), case["k"], len(pool), case["idx"], random_k=case["random_k"]
        )
        example, demonstrations = pool[case["idx"]], [pool[i] for i in drawn]
    else:
        example = examples(tables["test"][case["task"]], prompt)[case["idx"]]
        if case["row"] is not None:
            example = MetaICLExample(example.input, distinct(example.options)[case["row"]])
        pools = {seed: examples(table[case["task"]], prompt) for seed, table in tables["demonstrations"].items()}
        demonstrations = demonstrations_for(pools[str(case["seed_eval"])], pools["13"], case["k"])
    question = prompt.question(
        MetaICLExample(example.input, example.output), demonstrations, case["max_length"], case["task"]
    )
    return with_comp([[*step] for step in question.steps], [*question.query], case)


def training_choice(
    generator: np.random.RandomState, k: int, n: int, index: int, *, random_k: bool = False
) -> list[int]:
    """The examples, of ``n``, that the authors' training draws as demonstrations for the example ``index``.

    No example is drawn twice, and never the example itself.
    """
    if random_k and generator.uniform() <= 0.5:
        k = generator.randint(1, k + 1)
    return [int((i + 1 + index) % n) for i in generator.choice(n - 1, k, replace=False)]


def _lamp(recorded: dict[str, Any]) -> Iterator[tuple[str, Differences]]:
    for case in recorded["entry_text"]:
        ours = lamp.TEMPLATES[case["lamp_index"]].entry.format(**case["entry"])
        yield f"lamp {case['lamp_index']} entry", {"layout": float(ours != case["text"])}
    for number, classes in recorded["candidates"].items():
        yield f"lamp {number} classes", {"layout": float([*lamp.TEMPLATES[int(number)].classes] != classes)}
    for case in recorded["retriever"]:
        if not case["random_k"]:
            drawn = [[*islice(lamp_choices(case["n"], case["k"], train=train), 3)] for train in (True, False)]
            yield "lamp retriever", {"layout": float(drawn != [case["train_calls"], case["eval_calls"]])}
    for case in recorded["builder_filter"]:
        number = case["lamp_index"]
        kept = [
            lamp.kept_entries([n for n in lengths if n or number == 0], number) for lengths in case["token_lengths"]
        ]
        theirs = [entry["profile_ids"] for entry in case["kept"]]
        yield f"lamp {number} filter", {"layout": float([k for k in kept if k is not None] != theirs)}
    for number, case in enumerate(recorded["cases"]):
        if case["comp_type"] == "online" and case["label"] != "lamp1 without text after the instruction":
            yield f"lamp case {number} {case['label']}", {"layout": float(_lamp_text(case) != case["text"])}


def lamp_choices(n: int, k: int, *, train: bool) -> Iterator[list[int]]:
    """Yield the entries, of ``n``, that the authors draw: k entries for training, otherwise the first k of 16 drawn."""
    generator = np.random.default_rng(42 if train else 1337)
    while True:
        yield lamp.draw(generator, n, k if train else lamp.DRAWN)[:k]


def _lamp_text(case: dict[str, Any]) -> str:
    """The text of a recorded case, by ccm, with words for the COMP tokens after the steps."""
    layout, instance = lamp.TEMPLATES[case["lamp_index"]], case["instance"]
    count = len(instance["profile"]["id"])
    fields = instance["profile"].keys()
    profile = [{field: instance["profile"][field][i] for field in fields} for i in range(count)]
    drawn = next(lamp_choices(count, case["k"], train=case["is_train"])) if case["k"] and count else []
    answers = [*layout.classes] if case["classification"] else [instance["output"]]
    room = lamp.MAX_LENGTH - max(len(answer) + 1 for answer in answers) - 1  # EOS and BOS, in characters
    steps, query, _ = lamp.fit(layout, instance["input"], [profile[i] for i in drawn], _characters, room)
    n, rule = case["n_tok"], case["attn_type"]
    comp = "<COMP>" if n == 1 else "".join(f"<COMP{i}>" for i in range(n))
    total = "".join(f"<COMP{i}>" for i in range(n, 2 * n))
    texts = ["".join(map(chr, step)) for step in steps]
    each = comp + (total if rule == "merge_recur" else "")
    return each.join([*texts, ""]) + (total if rule == "merge" and steps else "") + "".join(map(chr, query))


def _characters(text: str) -> list[int]:
    return [ord(character) for character in text]
