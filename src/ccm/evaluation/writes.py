"""How much each step wrote into each entry of a memory that mixes its steps: weights, and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccm.core.errors import ConfigError
from ccm.core.files import write_atomically
from ccm.core.rules import Rule
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import Sample, Step, build_layout


class _RecordingRule(Rule):
    """A rule that mixes, and keeps the matrices of its layers."""

    needs_content = True  # a rule that does not need it ignores it

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.seen: dict[int, Tensor] = {}

    def holds(self, written: Tensor, now: Tensor) -> Tensor:
        return self.rule.holds(written, now)

    def mixing(self, layer: int, steps: int, n_tok: int, content: Tensor | None) -> Tensor | None:
        mix = self.rule.mixing(layer, steps, n_tok, content)
        assert mix is not None
        self.seen[layer] = mix
        return mix


@torch.no_grad()
def write_weights(model: CCMModel, steps: Sequence[Step], head: Sequence[int] = ()) -> Tensor:
    """The weight of each step in each entry of the memory, after every step.

    Returns:
        (T, L, K, N, T) float32 on the CPU: after a step, in a layer, head and slot, the weights of all steps; they add
        up to 1.

    Raises:
        ConfigError: when the rule does not mix steps, so that each entry comes from one step.
    """
    rule = model.rule
    if not rule.mixes:
        raise ConfigError(f"The rule {model.config.rule!r} mixes no steps: every entry is of one step alone.")
    layout = build_layout([Sample(steps, Step(steps[-1].ids[:1]), head)], model.config, rule, 0).to(model.device)
    recording = _RecordingRule(rule)
    model.rule = recording
    try:
        model(layout)
    finally:
        model.rule = rule
    count, n = len(steps), model.config.n_tok
    heads = model.empty_memory().sizes[0][0]
    layers = []
    for layer in sorted(recording.seen):
        mix = recording.seen[layer][0].expand(heads, -1, -1).unflatten(2, (count, n)).unflatten(1, (count, n))
        layers.append(mix.diagonal(dim1=2, dim2=4).permute(1, 0, 3, 2))  # (K, T, N, T, N) to (T, K, N, T)
    return torch.stack(layers, dim=1).float().cpu()


def draw_writes(weights: Tensor, labels: Sequence[str], title: str, path: Path) -> None:
    """A PNG of the memory after the last step: a panel for each layer, a row for each head and slot, a column a step.

    Args:
        weights: as of :func:`write_weights`.
        labels: of the steps.
        title: of the picture.
        path: of the file.
    """
    from matplotlib.figure import Figure

    _, layers, heads, slots, steps = weights.shape
    figure = Figure(figsize=(2.2 + 0.42 * steps * min(layers, 4), 2.6 + 0.16 * heads * slots * -(-layers // 4)))
    panels: Any = figure.subplots(-(-layers // 4), min(layers, 4), squeeze=False, sharey=True).flatten()
    for layer, panel in enumerate(panels):
        if layer >= layers:
            panel.set_visible(False)
            continue
        rows = weights[-1, layer].reshape(heads * slots, steps).numpy()
        image = panel.imshow(rows, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        panel.set_title(f"layer {layer}", fontsize=9)
        panel.set_xticks(range(steps), labels, rotation=90, fontsize=7)
        middles = [h * slots + (slots - 1) / 2 for h in range(heads)]
        panel.set_yticks(middles, [f"head {h}" for h in range(heads)], fontsize=7)
        panel.hlines([h * slots - 0.5 for h in range(1, heads)], -0.5, steps - 0.5, color="white", linewidth=0.8)
        panel.tick_params(length=0)
    panels[0].set_ylabel(f"slots 1 to {slots} of each head", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(
        image, ax=[p for p in panels if p.get_visible()], label="weight of the step", fraction=0.02, pad=0.01
    )
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=150, bbox_inches="tight"))
