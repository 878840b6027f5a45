"""The group of the metrics: figures from recorded likelihoods, and likelihoods of recorded questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ccm.data.metaicl import AUTHORS_MEAN, demonstrations_for
from ccm.data.questions import Question
from ccm.engine.decoder import CCMModel
from ccm.evaluation.answering import likelihood
from ccm.evaluation.metrics import CHOICES, Likelihood, accuracy, loss, macro_accuracy, perplexity
from ccm.evaluation.scoring import Scorer
from ccm.evaluation.texts import rouge
from conformance.data import examples, prompt_of
from conformance.goldens import Differences, Goldens, largest
from conformance.parallel import config_of
from conformance.t5 import t5_model


def check_metrics(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Accuracies, perplexities, ROUGE and likelihoods of the authors' evaluation."""
    tables = goldens.json("metrics/tables.json")
    yield "table of options", _accuracies(_questions(tables["metaicl"]["rows"]), tables["metaicl"]["all_examples"])
    table = tables["perplexity"]
    rows = [Likelihood(total, int(tokens)) for total, tokens in zip(table["ll_sum"], table["length"], strict=True)]
    figures = {"perplexity": perplexity(rows), "loss": loss(rows)}
    yield "table of perplexities", {"figure": max(abs(figures[k] - table["reference"][k]) for k in figures)}
    table = tables["lamp2_classification"]
    answers = [[Likelihood(total, 1) for total in row] for row in table["ll_sum"]]
    ours = 100 * accuracy([*zip(answers, table["answers"], strict=True)], "acc")
    yield "table of classes", {"figure": abs(round(ours, 2) - table["reference"]["eval_acc"])}
    yield from _likelihoods(tables["loglikelihood"])
    yield "rouge", _rouge(goldens.json("metrics/rouge.json"))
    parsed = goldens.json("metrics/parse_results.json")
    for name, model in parsed["models"].items():
        by_task: dict[str, dict[str, float]] = defaultdict(dict)
        for key, value in model["all_results"].items():
            task, _, figure = key.partition("_eval_")
            by_task[task][figure] = value
        ours = macro_accuracy(by_task, averaging=AUTHORS_MEAN)
        yield f"mean over tasks {name}", {"figure": abs(ours - parsed["reference"][name]["acc"])}
    recorded = goldens.json("metrics/end_to_end.json")
    for case in recorded["metaicl"]:
        yield f"metaicl {case['task']} {case['attn_type']} {case['comp_type']}", _metaicl(goldens, case)
    for case in recorded.get("metaicl_t5", ()):
        yield f"metaicl {case['task']} {case['attn_type']} {case['comp_type']} T5", _metaicl(goldens, case, bos=False)
    for case in recorded["dialogue"]:
        yield f"dialogue {case['attn_type']}", _dialogue(goldens, case)


def _questions(rows: Sequence[dict[str, Any]]) -> list[tuple[list[Likelihood], int]]:
    """Group rows of options into questions: the likelihoods of a question's options, and the index of the right one."""
    by_question: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_question[row["idx"]].append(row)
    return [
        (
            [Likelihood(row["ll_sum"], int(row["length"]), row["ll_base"]) for row in options],
            [row["is_answer"] for row in options].index(True),
        )
        for options in by_question.values()
    ]


def _accuracies(questions: list[tuple[list[Likelihood], int]], recorded: dict[str, float]) -> Differences:
    return {"figure": max(abs(100 * accuracy(questions, c) - recorded[f"eval_{c}"]) for c in CHOICES)}


def _likelihoods(table: dict[str, Any]) -> Iterator[tuple[str, Differences]]:
    """Likelihoods of answers from logits: each token is predicted by the token before it, and EOS does not count."""
    causal = table["causal"]
    for row, (logits, labels) in enumerate(zip(table["logits"], causal["labels"], strict=True)):
        columns = [i for i, label in enumerate(labels) if label not in (table["ignore"], table["eos"])]
        ours = likelihood(torch.tensor(logits)[[i - 1 for i in columns]], [labels[i] for i in columns])
        yield f"likelihood {row}", {"log-likelihood": abs(ours - causal["loglikelihoods"][row])}


def _rouge(table: dict[str, Any]) -> Differences:
    """ROUGE of texts, and its plain means; the authors report the median over a thousand resampled means instead."""
    ours = [rouge(*texts) for texts in zip(table["predictions"], table["references"], strict=True)]
    differences = []
    for name in table["plain_mean_x100"]:
        mine = [one[name.replace("rouge", "rouge_").lower()] for one in ours]
        differences += [abs(a - b[name]) for a, b in zip(mine, table["per_sample_f"], strict=True)]
        differences.append(abs(100 * sum(mine) / len(mine) - table["plain_mean_x100"][name]))
    return {"figure": max(differences)}


def _metaicl(goldens: Goldens, case: dict[str, Any], *, bos: bool = True) -> Differences:
    raw = goldens.json("data/metaicl_raw.json")
    prompt, tables = prompt_of(raw["special"], bos=bos), raw["raw"]
    pools = {seed: examples(table[case["task"]], prompt) for seed, table in tables["demonstrations"].items()}
    chosen = demonstrations_for(pools["100"], pools["13"], case["k"])
    questions = [
        prompt.question(example, chosen, case["max_length"], case["task"])
        for example in examples(tables["test"][case["task"]], prompt)
    ]
    model = _decoder(goldens, case) if bos else t5_model(goldens, {"conditional_lora": True, **case})
    scored = [*Scorer(model, batch=4).score(questions)]
    rows = [([*one.answers], one.right) for one in scored]
    sums = torch.tensor([answer.total for one in scored for answer in one.answers])
    own = torch.tensor([answer.own for one in scored for answer in one.answers])
    return {
        **_accuracies(rows, case["all_examples"]),
        "log-likelihood": max(largest(sums, torch.tensor(case["ll_sum"])), largest(own, torch.tensor(case["ll_base"]))),
    }


def _dialogue(goldens: Goldens, case: dict[str, Any]) -> Differences:
    table = goldens.json("samples.json")
    bos, sep = table["bos"], table["sep"]
    questions = []
    for dialogue in case["dialogs"]:
        *context, query, answer = dialogue
        steps = [[*([bos] if i == 0 else sep), *text] for i, text in enumerate(context)]
        questions.append(Question(steps, [*sep, *query, *sep], [answer]))
    scored = [*Scorer(_decoder(goldens, case), batch=4).score(questions)]
    rights = [one.answers[0] for one in scored]
    sums = torch.tensor([right.total for right in rights])
    figures, recorded = {"perplexity": perplexity(rights), "loss": loss(rights)}, case["reference"]
    return {
        "relative figure": max(abs(figures[k] / recorded[k] - 1) for k in figures),
        "log-likelihood": largest(sums, torch.tensor(case["loglikelihoods"])),
    }


def _decoder(goldens: Goldens, case: dict[str, Any]) -> CCMModel:
    return goldens.model(config_of("", {"sink": False, **case}), case["adapter"])
