"""A training step of ours beside an ordinary LoRA step of PEFT on the same text and the same targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from benchmarks import models
from benchmarks.common import Options, Report, Subject, compare, report_comparisons, time_in_turns
from benchmarks.models import CONCAT, MERGE
from ccm.core.config import CCMConfig
from ccm.engine.layout import Sample, build_layout

PLAIN = "plain LoRA"
OURS: dict[str, CCMConfig] = {"concat N=2": CONCAT, "merge N=8": MERGE}
LIMITS = {models.STEPS: (0.70, 0.85), 64: (0.50, 0.60)}  # by the number of steps, of concat and merge
SETTING = (
    f"One step, forward and backward, of {models.STEPS} or 64 steps of {models.STEP_TOKENS} tokens and a query of "
    f"{models.QUERY_TOKENS}, in {models.ROWS} rows or 1; {models.TARGET_TOKENS} targets a row, logits at the targets "
    "only. The plain step reads the same text without COMP tokens, under stock causal attention, with PEFT's LoRA of "
    "the same rank."
)


def run(options: Options) -> Report:
    """Time the steps in turns."""
    rows = []
    for steps, limits in LIMITS.items():
        samples = models.training_samples(models.ROWS if steps == models.STEPS else 1, steps)
        subjects = {f"{name}, {steps} steps": Subject(training_step(name, samples)) for name in (PLAIN, *OURS)}
        taken = time_in_turns(subjects, options)
        plain, *ours = subjects
        rows += [compare(taken, name, plain, limit) for name, limit in zip(ours, limits, strict=True)]
    return report_comparisons("Training step", SETTING, rows)


def training_step(name: str, samples: Sequence[Sample] | None = None) -> Callable[..., None]:
    """The training step of that name: gradients zeroed, forward, backward. The batch is laid out already."""
    samples = models.training_samples() if samples is None else samples
    return _plain_step(samples) if name == PLAIN else _our_step(OURS[name], samples)


def _our_step(config: CCMConfig, samples: Sequence[Sample]) -> Callable[..., None]:
    model = models.ccm_model(config).train()
    layout = build_layout(samples, config, model.rule, pad_id=0)

    def step(_: None = None) -> None:
        model.zero_grad()
        loss = model(layout).loss
        assert loss is not None
        loss.backward()

    return step


def _plain_step(samples: Sequence[Sample]) -> Callable[..., None]:
    model = plain_lora().train()
    ids = torch.tensor([[token for step in (*s.steps, s.query) for token in step.ids] for s in samples])
    targets = torch.tensor([s.query.targets for s in samples])[:, -models.TARGET_TOKENS :]
    columns = torch.arange(ids.shape[1] - models.TARGET_TOKENS, ids.shape[1])

    def step(_: None = None) -> None:
        model.zero_grad()
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=columns).logits
        cross_entropy(logits.flatten(0, 1).float(), targets.flatten()).backward()

    return step


def plain_lora() -> PreTrainedModel:
    """The stock model with PEFT's ordinary LoRA, of our rank and scale, on the same projections."""
    model, lora = models.stock_model(), CONCAT.lora
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=targets)
    inject_adapter_in_model(config, model)  # freezes the rest
    return model
