"""A tiny random base in a folder, conversations in a file, and short trainings of the one on the other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from helpers import ccm_config, tiny_base, tolerance
from torch import Tensor

from ccm.core.config import CCMConfig, LoRASettings
from ccm.data import open_data
from ccm.data.settings import DataSettings
from ccm.engine.adapter_files import read_adapter
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer
from ccm.training.loop import StepReport, Training
from ccm.training.recipe import Recipe
from ccm.training.run import Run
from ccm.training.stages import CompressStage, Stage, make_stage, open_turns

WORDS = ["anna", "likes", "tea", "and", "small", "red", "boats", "but", "never", "the", "cold", "rain", "in", "may"]
DROPOUT = LoRASettings(r=4, alpha=16, dropout=0.2)
CLOCK = ("tokens_per_second", "seconds")


@dataclass(frozen=True)
class Tiny:
    """Where they are."""

    base: Path
    chats: Path

    def recipe(self, out: Path | None = None, **changes: Any) -> Recipe:
        """Six steps of four samples, a checkpoint every second; without dropout."""
        settings: dict[str, Any] = {
            "model": str(self.base),
            "output_dir": None if out is None else str(out),
            "data": DataSettings(path=str(self.chats), eval_samples=2),
            "adapter": ccm_config("concat"),
            "objective": {"every": 1.0},
            "max_steps": 6,
            "batch_size": 4,
            "pass_tokens": 200,
            "pool": 2,
            "lr": 1e-2,
            "device": "cpu",
            "log_every": 1,
            "save_every": 2,
            "tensorboard": False,
        }
        return Recipe(**{**settings, **changes})


def write_tiny(folder: Path) -> Tiny:
    """Make them."""
    base = tiny_base("llama_gqa", vocab_size=3072, max_position_embeddings=512, num_hidden_layers=2)
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5)
    base.float().save_pretrained(folder / "base")  # not to be cast as it is loaded: in a fork, torch's threads cannot
    load_tokenizer(WEIGHTS / "base").save_pretrained(folder / "base")
    rng = random.Random(0)
    lines = []
    for number in range(24):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(2 * (3 + number % 3))]
        lines.append({"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]})
    chats = folder / "chats.jsonl"
    chats.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Tiny(folder / "base", chats)


def begin(recipe: Recipe, report: Callable[[StepReport], None] = lambda report: None) -> Training:
    """A training under way, nothing of it done."""
    turns = open_turns(recipe)
    run, data = Run(Path(recipe.output_dir or "unused"), recipe), open_data(recipe.data, turns, recipe.seed)
    return Training(recipe, run, data, partial(make_stage, turns=turns), report)


def make(recipe: Recipe, seed: int = 1) -> Stage:
    """A stage whose trained tensors all matter: LoRA B is not zero."""
    torch.manual_seed(0)
    stage = make_stage(recipe, open_turns(recipe))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in stage.trained.values():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return stage


def compressing(recipe: Recipe) -> CompressStage:
    stage = make(recipe)
    assert isinstance(stage, CompressStage)
    return stage


def records(folder: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of the result."""
    return read_adapter(folder).tensors


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "checkpoints").iterdir())


def gradients(stage: Stage) -> dict[str, Tensor]:
    """Those of what is trained, taken away."""
    found = {name: p.grad for name, p in stage.trained.items() if p.grad is not None}
    for parameter in stage.trained.values():
        parameter.grad = None
    return found


def with_lora(config: CCMConfig, **settings: Any) -> CCMConfig:
    return replace(config, lora=replace(config.lora, **settings))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> None:
    """Equal tensors by name; the tolerance is absolute."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0.0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def assert_trained_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal but for roundings, and for one in a hundred elements.

    AdamW divides a gradient by its size: it moves an element whose gradient is rounding alone by the whole rate, to
    either side.
    """
    assert one.keys() == other.keys()
    apart = torch.cat([(tensor - other[name]).abs().flatten() for name, tensor in one.items()])
    assert (apart > tolerance(1.0)).double().mean() < 0.01
    assert apart.median() < tolerance(1.0)
