"""Tasks of lm-eval with their context in memory."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import assert_close, tiny_base
from tokenizers_made import CHATML, LLAMA3, tokenizer

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ccm import cli
from ccm.core.errors import ConfigError
from ccm.data.questions import Question
from ccm.evaluation.harness import MemoryLM
from ccm.evaluation.scoring import Scorer

SHOTS = "My name is Anna.\nWelcome, Anna!\n\nI live in Oslo.\nI see, you live in Oslo.\n\n"
ASKED = SHOTS + "What is my name?\n"
PAIRS = [(ASKED, "Your name is Anna."), (ASKED, "Your name is Bob."), ("", "Hello!"), ("One piece ", "of text")]
CHAT = [
    {"role": "user", "content": "My name is Anna."},
    {"role": "assistant", "content": "Welcome, Anna!"},
    {"role": "user", "content": "What is my name?"},
]


@cache
def made(rule: str | None = None, **options: Any) -> MemoryLM:
    return MemoryLM("builtin", rule=rule, **options)


def requests(kind: Any, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def stock() -> HFLM:
    """lm-eval's own model on the same base."""
    lm = made("full")
    return HFLM(pretrained=lm.model.base, tokenizer=lm.tokenizer, batch_size=2, device="cpu")


def test_with_the_whole_context_in_view_likelihoods_are_those_of_the_stock_model(stock: HFLM) -> None:
    asked = requests("loglikelihood", *PAIRS)
    ours, theirs = made("full").loglikelihood(asked, disable_tqdm=True), stock.loglikelihood(asked, disable_tqdm=True)
    assert [top for _, top in ours] == [top for _, top in theirs]
    assert_close(*(torch.tensor([total for total, _ in found]) for found in (ours, theirs)))


def test_with_the_whole_context_in_view_texts_are_those_of_the_stock_model(stock: HFLM) -> None:
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = requests("generate_until", (ASKED, options), (SHOTS, options), ("I have", {**options, "until": ["."]}))
    assert made("full").generate_until(asked, True) == stock.generate_until(asked, True)


def test_a_whole_text_has_the_likelihood_of_the_stock_model(stock: HFLM) -> None:
    asked = requests("loglikelihood_rolling", (ASKED,), ("Hi.",))
    theirs = torch.tensor(stock.loglikelihood_rolling(asked, disable_tqdm=True))
    for lm in (made("full"), made("full", window=7)):
        assert_close(torch.tensor(lm.loglikelihood_rolling(asked, True)), theirs)


def test_windows_of_a_whole_text_are_compressed_one_by_one() -> None:
    lm = made(window=5)
    ids = lm.tok_encode(ASKED, add_special_tokens=False)
    read, total, memory = [lm.prefix_token_id, *ids[:-1]], 0.0, lm.model.empty_memory()
    for begin in range(0, len(ids), 5):
        with torch.no_grad():
            logits = lm.model.read(lm.model.close(memory), torch.tensor([read[begin : begin + 5]]))[0].log_softmax(-1)
            memory = lm.model.compress(memory, torch.tensor([read[begin : begin + 5]]))
        total += sum(float(row[token]) for row, token in zip(logits, ids[begin : begin + 5], strict=True))
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", (ASKED,)), True) == [
        pytest.approx(total, rel=1e-5)
    ]


def test_each_demonstration_is_a_step_and_the_scores_are_those_of_an_evaluation() -> None:
    lm = made()
    asked = lm._asked(ASKED.rstrip())
    assert [lm.tokenizer.decode(step) for step in asked.steps] == [f"{one}\n\n" for one in SHOTS.split("\n\n")[:-1]]
    assert asked.ids == lm.tok_encode(ASKED.rstrip())
    told = lm.loglikelihood(requests("loglikelihood", *PAIRS[:2]), disable_tqdm=True)
    answers = [lm._encode_pair(*pair)[1] for pair in PAIRS[:2]]
    (scored,) = Scorer(lm.model).score([Question(asked.steps, asked.query, answers)])
    assert [total for total, _ in told] == [answer.total for answer in scored.answers]
    assert scored.entries == 4


def test_messages_are_steps_in_the_turns_of_the_adapter() -> None:
    lm = made()
    turns, context = lm._turns, lm.apply_chat_template(CHAT)
    asked = lm._asked(context)
    assert asked.steps == [turns.exchange(CHAT[0]["content"], CHAT[1]["content"], first=True).ids]
    assert asked.query == turns.prompt(CHAT[2]["content"], first=False)
    told = {"until": ["\n"], "max_gen_toks": 12}
    assert lm.generate_until(requests("generate_until", (context, told)), True) == ["Your name is Anna."]
    begun = lm.apply_chat_template([*CHAT, {"role": "assistant", "content": "Your name"}], add_generation_prompt=False)
    assert lm._asked(begun).query == [*asked.query, *turns.encode_reply("Your name")]
    headed = lm._asked(lm.apply_chat_template([{"role": "system", "content": "Be kind."}, *CHAT]))
    assert headed.head == turns.under("Be kind.").head


@pytest.fixture(scope="module", params=[CHATML, LLAMA3])
def instruct(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HFLM]:
    """A folder of a base with a chat template, and lm-eval's own model on it."""
    folder = tmp_path_factory.mktemp("instruct")
    made = tokenizer(request.param, adds_bos=request.param is LLAMA3)
    made.save_pretrained(folder)
    tiny_base("llama_gqa", vocab_size=len(made), max_position_embeddings=512).float().save_pretrained(folder)
    return folder, HFLM(pretrained=str(folder), dtype="float32", batch_size=2, device="cpu")


def test_a_chat_in_full_view_is_that_of_the_stock_model(instruct: tuple[Path, HFLM]) -> None:
    folder, stock = instruct
    ours = MemoryLM(str(folder), rule="full")
    chats = [CHAT, [{"role": "system", "content": "Be kind."}, *CHAT], CHAT[2:]]
    options = {"until": ["z"], "max_gen_toks": 6, "do_sample": False}
    found = []
    for lm in (ours, stock):
        asked = [lm.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        pairs = [(context, reply) for context in asked for reply in ("Anna.", "You are Bob.")]
        scores = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
        texts = lm.generate_until(requests("generate_until", *((context, options) for context in asked)), True)
        found.append((scores, texts))
    (ours_scores, ours_texts), (scores, texts) = found
    assert_close(*(torch.tensor([total for total, _ in one]) for one in (ours_scores, scores)))
    assert [top for _, top in ours_scores] == [top for _, top in scores]
    assert all(theirs.startswith(text) for text, theirs in zip(ours_texts, texts, strict=True))  # ours ends with a turn


def test_without_context_a_question_reads_as_its_own_text(instruct: tuple[Path, HFLM]) -> None:
    folder, stock = instruct
    lm = MemoryLM(str(folder), rule="none")
    pairs = [(ASKED, "Anna."), (lm.apply_chat_template(CHAT), "Anna.")]
    alone = [("What is my name?\n", "Anna."), (stock.apply_chat_template(CHAT[2:]), "Anna.")]
    ours = lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    theirs = stock.loglikelihood(requests("loglikelihood", *alone), disable_tqdm=True)
    assert_close(*(torch.tensor([total for total, _ in one]) for one in (ours, theirs)))


def test_a_context_that_is_too_long_loses_its_oldest_steps(caplog: pytest.LogCaptureFixture) -> None:
    lm = made("merge")
    long = SHOTS * 400
    asked = lm._fitted(lm._asked(long + "What is my name?\n"), 8)
    assert asked.steps == lm._asked(long + "What").steps[-len(asked.steps) :]
    assert 0 <= lm.model.max_positions - len(asked.ids) - 8 - lm.model.config.n_tok < 20
    assert "its oldest steps are left out" in caplog.text
    only = lm._fitted(lm._asked("word " * 4000), 8)
    assert (only.steps, len(only.query)) == ([], lm.model.max_positions - 8 - lm.model.config.n_tok)
    with pytest.raises(ConfigError, match="max_gen_toks"):
        lm._fitted(lm._asked("Hi."), 10_000)


def test_texts_without_context_are_scored_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, asked, score = made(batch_size=2), list[Question](), Scorer.score

    def told(scorer: Scorer, questions: list[Question], *more: Any) -> Any:
        asked.extend(questions)
        return score(scorer, questions, *more)

    monkeypatch.setattr(Scorer, "score", told)
    texts = [("", text) for text in ("Hi!", "No.", "Yes.")]
    found = lm.loglikelihood(requests("loglikelihood", *texts), True)
    assert [len(one.answers) for one in asked] == [2, 1]
    alone = [lm.loglikelihood(requests("loglikelihood", text), True)[0] for text in texts]
    assert_close(*(torch.tensor([total for total, _ in one]) for one in (found, alone)))


def test_the_rule_none_is_no_absence_of_a_rule() -> None:
    given = {"batch_size": 1, "max_batch_size": None, "device": None}
    lm = MemoryLM.create_from_arg_string("model=builtin,rule=none,batch_size=3", given)
    assert (lm.model.config.rule, lm.scorer.batch) == ("none", 3)
    assert MemoryLM.create_from_arg_string("model=builtin", given).model.config.rule == "concat"


def test_what_cannot_be_is_refused() -> None:
    wrongs = (
        {"batch_size": "auto"},
        {"batch_size": 0.5},
        {"batch_size": 0},
        {"batch_size": "\u00b2"},
        {"delimiter": ""},
        {"window": 0},
        {"n_tok": "two"},
        {"rulle": 1},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            MemoryLM("builtin", **wrong)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a task of two questions and three demonstrations."""
    docs = {
        "shots": [("I live in Oslo.", 0), ("I have a cat.", 1), ("My name is Bob.", 1)],
        "test": [("What is my name?", 0), ("I live in Rome.", 1)],
    }
    for split, rows in docs.items():
        lines = [json.dumps({"said": said, "choices": ["I see.", "Good."], "right": right}) for said, right in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    task = {
        "task": "ccm_fixture",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(tmp_path / f"{split}.jsonl") for split in docs}},
        "test_split": "test",
        "fewshot_split": "shots",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "doc_to_text": "{{said}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{right}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "fixture.yaml").write_text(yaml.safe_dump(task))
    return tmp_path


@pytest.mark.parametrize("chat", [False, True])
def test_a_task_runs_with_its_demonstrations_in_memory(
    tasks: Path, chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    seen, score = list[Question](), Scorer.score

    def told(scorer: Scorer, questions: list[Question], *more: Any) -> Any:
        seen.extend(questions)
        return score(scorer, questions, *more)

    monkeypatch.setattr(Scorer, "score", told)
    found = simple_evaluate(
        model="ccm",
        model_args={"model": "builtin"},
        tasks=["ccm_fixture"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        num_fewshot=2,
        apply_chat_template=chat,
        bootstrap_iters=0,
    )
    assert found["results"]["ccm_fixture"]["acc,none"] in (0.0, 0.5, 1.0)
    assert [(len(one.steps), len(one.answers)) for one in seen] == [(2, 2)] * 2


@pytest.mark.slow
def test_the_command_is_that_of_lm_eval_and_knows_the_model(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tasks / "cache"))
    options = [
        "--model",
        "ccm",
        "--model_args",
        "model=builtin,rule=none",
        "--include_path",
        str(tasks),
        "--limit",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["ccm", "lm-eval", "run", *options, "--tasks", "ccm_fixture"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "|ccm_fixture|" in capsys.readouterr().out
