"""The groups of the parallel pass: its results, its gradients, and five steps of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ccm.core.config import CCMConfig, LoRASettings
from ccm.engine.attention import ParallelPass
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import IGNORE, Layout, Sample, Step, build_layout
from ccm.engine.lora import initial_embeddings
from ccm.engine.memory import Memory
from conformance.goldens import Differences, Goldens, greedy, largest

NOISE = 1e-5  # the sign of a smaller gradient depends on the order of summation


def config_of(case: str, entry: dict[str, Any]) -> CCMConfig:
    """The config of a recorded case."""
    rule = {"no": "full", "neg_control": "none", "pos_control": "pos_control", "fixed": "gist"}.get(entry["comp_type"])
    name, _, recurrent = entry["attn_type"].partition("_")
    alone = rule == "full" and entry["adapter"] is not None  # an unmerged stage-1 adapter acts at all tokens
    return CCMConfig(
        rule=rule or name,
        recurrent=bool(recurrent),
        n_tok=entry["n_tok"],
        sink=entry["sink"],
        positions="base" if case.endswith("_basepos") else "skip",
        lora=LoRASettings(r=4, alpha=16, conditional=not (alone or case.endswith("_uncond_lora"))),
    )


def _parallel_model(goldens: Goldens, case: str, entry: dict[str, Any]) -> CCMModel:
    return goldens.model(config_of(case, entry), entry["adapter"], entry["merged_base_adapter"])


def _samples(goldens: Goldens, model: CCMModel) -> list[Sample]:
    """The batch of ``samples.json``: BOS or a separator precedes each text, and a separator follows the query."""
    table = goldens.json("samples.json")
    sep, eos = table["sep"], table["eos"]
    samples = []
    for sample in table["samples"]:
        *contexts, query, target = sample["dialog"]
        steps = [Step([*([table["bos"]] if i == 0 else sep), *text]) for i, text in enumerate(contexts)]
        prompt = [*([table["bos"]] if model.rule.forgets else sep), *query, *sep]
        labels = [IGNORE] * (len(prompt) - 1) + [*target, eos] + [IGNORE]
        samples.append(Sample(steps, Step([*prompt, *target, eos], labels)))
    return samples


def check_parallel(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Layout, positions, masks, logits, losses, likelihoods and greedy tokens of the authors' parallel pass."""
    cases = goldens.json("manifest_parallel.json")["cases"]
    for case, entry in cases.items():
        yield case, case_differences(goldens, case, entry, _parallel_model(goldens, case, entry))
    for name, rows in goldens.arrays("init_comp_embeddings.npz").items() if cases else ():
        base = LlamaForCausalLM.from_pretrained(goldens.folder / "tiny-llama")
        yield f"initial embeddings {name}", {"embedding": largest(initial_embeddings(base, len(rows)), rows)}


def case_differences(goldens: Goldens, case: str, entry: dict[str, Any], model: CCMModel) -> Differences:
    """All differences of the model from a recorded case."""
    gold = goldens.arrays(f"parallel/{case}.npz")
    samples = _samples(goldens, model)
    layout = build_layout(samples, model.config, model.rule, pad_id=0)
    untrained = Layout(**{**vars(layout), "targets": torch.full_like(layout.targets, IGNORE)})
    with torch.no_grad():
        loss, logits = model(layout).loss, model(untrained).logits
    kept = gold["attention_mask"].bool() & ~gold.get("sum_mask", torch.zeros(())).bool()
    ours = layout.blocks >= 0
    return {
        "layout": _layout_difference(gold, kept, layout, ours, entry),
        "mask": _mask_difference(gold, kept, layout, ours, model),
        **({"mixing": _mixing_difference(gold, layout, model)} if "sum_mask" in gold else {}),
        "logits": largest(logits[ours], gold["logits"][kept]),
        "loss": largest(loss, gold["loss"]),
        "log-likelihood": _likelihood_difference(gold, logits, layout),
        "greedy": _greedy_difference(gold, model, samples),
    }


def _layout_difference(gold: dict, kept: Tensor, layout: Layout, ours: Tensor, entry: dict[str, Any]) -> float:
    first = entry["comp_token_id"][0] if entry["comp_token_id"] else 1 << 30
    ids = torch.where(layout.slots >= 0, layout.slots + first, layout.ids)
    different = int(
        (ids[ours] != gold["input_ids"][kept]).sum() + (layout.positions[ours] != gold["position_ids"][kept]).sum()
    )
    for row in range(len(ids)):
        labels, targets = gold["labels"][row][kept[row]], layout.targets[row][ours[row]]
        different += int((labels[1:] != targets[:-1]).sum())
        if "comp_mask" in gold:
            different += int(((layout.slots[row] >= 0)[ours[row]] != gold["comp_mask"][row][kept[row]].bool()).sum())
    return float(different)


def _mask_difference(gold: dict, kept: Tensor, layout: Layout, ours: Tensor, model: CCMModel) -> float:
    """The number of differing cells of the mask; the authors' SUM columns are memory columns at the end in ccm."""
    current = ParallelPass(layout, model.rule)
    different = 0
    for row in range(len(kept)):
        visible = gold["visible"][row, 0].bool()[kept[row]]
        mask = current.mask()[row, 0][ours[row]]
        width = layout.ids.shape[1]
        different += int((visible[:, kept[row]] != mask[:, :width][:, ours[row]]).sum())
        if "sum_mask" in gold:
            sums = visible[:, gold["sum_mask"][row].bool()]
            used = mask[:, width:]
            expected = torch.zeros_like(used)
            steps = int((layout.slots[row] == 0).sum())
            expected[:, steps * layout.n_tok - sums.shape[1] : steps * layout.n_tok] = sums
            different += int((used != expected).sum())
    return float(different)


def _mixing_difference(gold: dict, layout: Layout, model: CCMModel) -> float:
    """Compare the weights that average COMP columns; the authors keep only those of memories that are read."""
    mix = model.rule.mixing(0, layout.steps, layout.n_tok, None)
    assert mix is not None
    worst = 0.0
    for row, weights in enumerate(gold["sum_attn_mask"]):
        sums = gold["sum_mask"][row].bool()
        theirs = weights[sums][:, gold["comp_mask"][row].bool() & ~sums]
        read, count = theirs.shape
        worst = max(worst, largest(mix[0, 0, count - read : count, :count].float(), theirs.float()))
    return worst


def _likelihood_difference(gold: dict, logits: Tensor, layout: Layout) -> float:
    """Compare sum, mean and number of the target tokens' log-likelihoods, without EOS (id 2)."""
    scored = (layout.targets != IGNORE) & (layout.targets != 2)
    each = logits.log_softmax(-1).gather(-1, layout.targets.clamp(min=0)[..., None])[..., 0] * scored
    total, number = each.sum(1), scored.sum(1)
    return max(
        largest(total, gold["ll_sum"]), largest(total / number, gold["ll_mean"]), largest(number, gold["ll_length"])
    )


def _greedy_difference(gold: dict, model: CCMModel, samples: list[Sample]) -> float:
    """Compare greedy tokens: each row's memory is built online, then all rows generate as one padded batch."""
    memories, prompts = [], []
    for sample in samples:
        memory = model.empty_memory()
        for step in sample.steps:
            memory = model.compress(memory, torch.tensor([step.ids]))
        memories.append(memory)
        length = sum(target == IGNORE for target in sample.query.targets)
        prompts.append(list(sample.query.ids[:length]))
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    return float((greedy(model, Memory.stack(memories), ids, mask) != gold["greedy"]).sum())


def check_grads(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """The gradients of the loss with respect to every trained tensor."""
    for case, entry in goldens.json("manifest_parallel.json")["cases"].items():
        if entry["adapter"] is None:
            continue
        model = _parallel_model(goldens, case, entry)
        samples = _samples(goldens, model)
        model(build_layout(samples, model.config, model.rule, pad_id=0)).loss.backward()
        own = {name: tensor.grad for name, tensor in model.adapter_tensors().items()}
        recorded = under_our_names(goldens.tensors(f"grads/{case}.safetensors"), model.config.n_tok)
        yield case, {"gradient": compare_tensors(recorded, own)}


def under_our_names(gold: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Recorded tensors of an adapter under ccm's names, without the embeddings after ``rows``, which are for SUM."""
    recorded = {}
    for name, tensor in gold.items():
        name = name.removeprefix("base_model.model.")
        if name.endswith("comp_embeddings.weight"):
            name, tensor = "comp_embeddings.weight", tensor[:rows]
        recorded[name] = tensor
    return recorded


def compare_tensors(recorded: dict[str, Tensor], own: dict[str, Tensor | None]) -> float:
    """The largest difference; infinite if a nonzero tensor of ccm was not recorded."""
    if unknown := recorded.keys() - own.keys():
        raise KeyError(*sorted(unknown))
    if any(mine is not None and mine.any() and name not in recorded for name, mine in own.items()):
        return float("inf")
    pairs = ((own[name], tensor) for name, tensor in recorded.items())
    return max((largest(torch.zeros_like(x) if mine is None else mine, x) for mine, x in pairs), default=float("inf"))


def check_train(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Five AdamW steps. Elements whose first gradient is rounding noise are counted, but not compared.

    AdamW divides a gradient by its magnitude, so it moves an element whose gradient is noise by the full learning rate
    in a random direction.
    """
    manifest = goldens.json("manifest_parallel.json")
    cases = manifest["cases"]
    for name in manifest["train"]:
        case = name.removesuffix("_adamw5")
        gold = goldens.tensors(f"train/{name}.safetensors")
        expected = gold.pop("losses")
        model = _parallel_model(goldens, case, cases[case])
        layout = build_layout(_samples(goldens, model), model.config, model.rule, pad_id=0)
        optimizer = torch.optim.AdamW(model.adapter_tensors().values(), lr=1e-3, weight_decay=0.0)
        own, losses, unsettled = model.adapter_tensors(), [], {}
        for step in range(len(expected)):
            loss = model(layout).loss
            losses.append(loss.item())
            if step < len(expected) - 1:
                optimizer.zero_grad()
                loss.backward()
                if step == 0:
                    sizes = {k: v.grad.abs() for k, v in own.items() if v.grad is not None}
                    unsettled = {k: (size > 0) & (size < NOISE) for k, size in sizes.items()}
                optimizer.step()
        recorded = under_our_names(gold, model.config.n_tok)
        settled: dict[str, Tensor | None] = {
            k: torch.where(unsettled[k], recorded[k], v.detach()) if k in unsettled.keys() & recorded.keys() else v
            for k, v in own.items()
        }
        yield (
            case,
            {
                "parameter": compare_tensors(recorded, settled),
                "unsettled": sum(int(x.sum()) for x in unsettled.values()) / sum(x.numel() for x in own.values()),
                "loss": largest(torch.tensor(losses, dtype=torch.float64), expected),
            },
        )
