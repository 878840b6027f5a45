"""``ccm train`` as a whole beside the bare steps on the same batches: what drawing, logging and saving cost.

Both take turns within one training: whenever it reports, the bare steps make up for the batches that it has made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from math import isclose
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory

import torch

from benchmarks.common import CLOCKS, FIGURES, Options, compare
from benchmarks.common import Report as Table
from ccm.chat.turns import Turns
from ccm.data import open_data
from ccm.engine.layout import IGNORE, Layout, build_layout, length
from ccm.training.batches import Batch, Batches
from ccm.training.loop import StepReport, train
from ccm.training.recipe import Recipe, load_recipe
from ccm.training.stages import make_stage, open_turns

STEPS, LEAST = 8, 0.85  # optimizer steps of a round
TRAIN, BARE = "ccm train", "bare steps"
CHANGES = (
    "device=cpu",
    "objective={every: 1.0}",
    "adapter.lora.dropout=0.0",
    "data.options.ramp=0",  # dialogues of every length from the start
    "data.options.recall=0",
    "data.eval_samples=0",
    "eval_every=0",
    "warmup=0.0",
    "lr_end=1.0",  # one rate all along, for the bare steps
    f"pool={STEPS}",  # every round draws one
    f"log_every={STEPS}",
    f"save_every={STEPS}",
)
RECIPE = load_recipe("builtin", CHANGES)
SETTING = (
    f"Text tokens per second of `ccm train builtin`, objective every, {RECIPE.batch_size} dialogues a step: all that "
    f"it does, with a record and a checkpoint every {STEPS} steps. Beside it the bare steps on the same batches, laid "
    f"out beforehand: forward, backward, clipping, AdamW. A round is {STEPS} steps of each, in turns within one "
    "process; both must give the same losses."
)


class BareSteps:
    """The optimizer steps of a training, and nothing else.

    Args:
        recipe: of a compression adapter, with the objective "every" alone.
        turns: of the recipe.
    """

    def __init__(self, recipe: Recipe, turns: Turns) -> None:
        torch.manual_seed(recipe.seed)  # the adapter that the training begins with
        self.recipe, self.stage = recipe, make_stage(recipe, turns)
        self.stage.module.train()
        self.parameters = [*self.stage.trained.values()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )

    def lay_out(self, batch: Batch) -> list[tuple[Layout, float]]:
        """The passes of a batch: their layouts, and their shares of all targets."""
        stage, pad = self.stage, self.stage.turns.tokenizer.pad_token_id
        parts = batch.passes(self.recipe.pass_tokens, 1)
        layouts = [build_layout(part.samples, stage.config, stage.rule, pad) for part in parts]
        layouts = [
            replace(layout, positions=layout.positions + torch.tensor(part.starts)[:, None])
            for layout, part in zip(layouts, parts, strict=True)
        ]
        targets = [int((layout.targets != IGNORE).sum()) for layout in layouts]
        return [(layout, count / sum(targets)) for layout, count in zip(layouts, targets, strict=True)]

    def step(self, passes: Sequence[tuple[Layout, float]]) -> float:
        """One optimizer step; returns the loss."""
        found = 0.0
        for layout, share in passes:
            loss = self.stage.module(layout).loss * share
            loss.backward()
            found += loss.item()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return found


def run(options: Options) -> Table:
    """Train once, with the bare steps in between."""
    seconds, tokens = _time(options)
    speeds = {way: [n / s for n, s in zip(tokens, taken, strict=True)] for way, taken in seconds.items()}
    c = compare(speeds, TRAIN, BARE, least=LEAST)
    columns = ["", "beside", "tokens/s", "tokens/s beside", *FIGURES[2:]]
    row = [c.subject, c.reference, f"{c.seconds:,.0f}", f"{c.reference_seconds:,.0f}", *c.figures()[2:]]
    data = asdict(c) | {
        "seconds": median(seconds[TRAIN]),
        "reference_seconds": median(seconds[BARE]),
        "tokens_per_second": c.seconds,
        "reference_tokens_per_second": c.reference_seconds,
    }
    return Table("The training loop", SETTING, columns, [row], [data])


def draw(recipe: Recipe, turns: Turns) -> Iterator[Batch]:
    """The batches of a training whose N is always the same, as it draws them."""
    n_tok = (recipe.adapter.n_tok, recipe.adapter.n_tok)
    data = open_data(recipe.data, turns, recipe.seed)
    return Batches(data, recipe.batch_size, recipe.pool, n_tok, recipe.max_offset, recipe.seed).since(0)


def _time(options: Options) -> tuple[dict[str, list[float]], list[int]]:
    """Seconds of every round of both, and its text tokens. The first round begins with the loading: it warms up."""
    recipe = replace(RECIPE, max_steps=STEPS * (options.warmup + options.rounds))
    clock, turns = CLOCKS[options.clock], open_turns(recipe)
    bare, batches = BareSteps(recipe, turns), draw(recipe, turns)
    seconds: dict[str, list[float]] = {TRAIN: [], BARE: []}
    tokens: list[int] = []
    begin = clock()

    def report(told: StepReport) -> None:
        nonlocal begin
        trained = clock() - begin
        done = [*islice(batches, STEPS)]
        ready = [bare.lay_out(batch) for batch in done]
        begin = clock()
        losses = [bare.step(passes) for passes in ready]
        stepped = clock() - begin
        ours, loss = mean(losses), told.losses["loss"]
        near = 1e-3 if told.step == STEPS else 5e-2  # the same rounding errors grow apart over a hundred steps
        assert isclose(ours, loss, rel_tol=near), f"The losses up to step {told.step} differ: {loss} and, bare, {ours}."
        if told.step > STEPS * options.warmup:
            seconds[TRAIN].append(trained)
            seconds[BARE].append(stepped)
            tokens.append(sum(length(sample) for batch in done for sample in batch.samples))
        begin = clock()

    with TemporaryDirectory() as folder:
        train(replace(recipe, output_dir=str(Path(folder) / "run")), report=report)
    return seconds, tokens
