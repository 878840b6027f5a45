"""The model that ships with the package."""

from __future__ import annotations

import pytest
import torch

import ccm
from ccm.data.builtin.generator import HELD_OUT, corpus
from ccm.data.builtin.recall import evaluate_recall
from ccm.models.builtin import LONGEST_TURN, WEIGHTS


def test_it_is_small_and_of_the_llama_architecture() -> None:
    model, tokenizer = ccm.load("builtin")
    parameters = sum(p.numel() for name, p in model.base.named_parameters() if "lora_" not in name)
    assert 2.0e6 < parameters < 2.5e6
    assert model.base.config.model_type == "llama"
    assert len(tokenizer) == 3072
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 12 * 2**20


def test_its_tokenizer_keeps_every_text() -> None:
    _, tokenizer = ccm.load("builtin")
    for text in ("My name is Anna.", "naïve café, 東京 🙂", "  two  spaces\tand a tab", *sorted(HELD_OUT)[:5]):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_no_turn_of_its_dialogues_is_longer_than_is_said() -> None:
    _, tokenizer = ccm.load("builtin")
    said = [turn.user for dialogue in corpus(0, dialogues=150, steps=(4, 48)) for turn in dialogue.turns]
    assert LONGEST_TURN - 4 <= max(len(tokenizer.encode(text)) for text in said) <= LONGEST_TURN


@pytest.mark.covers(cases=1)
@pytest.mark.parametrize(("rule", "least", "most"), [("full", 0.9, 1.0), ("none", 0.0, 0.15)])
def test_full_context_recalls_and_no_context_does_not(rule: str, least: float, most: float) -> None:
    report = evaluate_recall(*ccm.load("builtin", rule=rule), dialogues=12, batch=12, seed=5)
    assert least <= report.recall <= most
    assert report.invented <= 0.2 or rule == "none"


@pytest.mark.covers(cases=1)
@pytest.mark.parametrize(("rule", "least", "entries"), [("concat", 0.85, 24), ("gate", 0.8, 4), ("merge", 0.4, 4)])
def test_memory_recalls_and_is_at_least_five_times_smaller(rule: str, least: float, entries: int) -> None:
    report = evaluate_recall(*ccm.load("builtin", rule=rule), dialogues=12, batch=12, seed=5)
    assert report.recall >= least
    assert report.entries == entries
    assert report.full_context_bytes >= 5 * report.memory_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "least", "most"),
    [("full", 0.98, 1.0), ("concat", 0.95, 1.0), ("gate", 0.91, 1.0), ("merge", 0.55, 0.7), ("none", 0.0, 0.05)],
)
def test_recall_of_500_fresh_dialogues(rule: str, least: float, most: float) -> None:
    report = evaluate_recall(*ccm.load("builtin", rule=rule), dialogues=500)
    assert least <= report.recall <= most


@pytest.mark.slow
def test_recall_does_not_depend_on_the_batch() -> None:
    model, tokenizer = ccm.load("builtin")
    model.base.double()  # in which no two likeliest tokens are nearly tied
    reports = [evaluate_recall(model, tokenizer, dialogues=3, batch=batch, seed=3) for batch in (2, 3)]
    assert reports[0] == reports[1]


def test_memory_matters_in_every_layer() -> None:
    """Zeroed values of any one layer change what a query reads."""
    model, tokenizer = ccm.load("builtin")
    chat = ccm.Conversation(model, tokenizer)
    chat.answer("My name is Anna.")
    query = torch.tensor([chat.turns.prompt("What is my name?", first=False)])
    with torch.no_grad():
        logits = model.read(chat.memory, query)
        for layer in range(len(chat.memory.values)):
            damaged = chat.memory.fork()
            damaged.values[layer].zero_()
            assert not torch.allclose(model.read(damaged, query), logits, atol=1e-3)
