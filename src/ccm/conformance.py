"""Conformance: are we equal to numbers recorded from the authors' code? ``python -m ccm.conformance DIR``.

Each group of a goldens folder is one function here that yields (case, differences by quantity). A quantity's tolerance
stands in :data:`TOLERANCE`; 0 means exactly equal.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from ccm.adapter import PlainLoRA, initial_embeddings
from ccm.attention import ParallelPass
from ccm.checkpoint import read_plain_lora, read_stage1
from ccm.config import CCMConfig, LoRASettings
from ccm.console import quiet
from ccm.layout import IGNORE, Layout, Sample, Step, build_layout
from ccm.memory import Memory
from ccm.model import CCMModel

TOLERANCE = {
    "layout": 0.0,
    "mask": 0.0,
    "greedy": 0.0,
    "offset": 0.0,
    "mixing": 1e-6,
    "embedding": 1e-6,
    "parameter": 1e-5,
    "loss": 2e-5,
    "gradient": 1e-4,
    "logits": 2e-4,
    "kv": 2e-4,
    "log-likelihood": 1e-3,
}
NEW_TOKENS = 12
Differences = dict[str, float]
Group = Callable[["Goldens"], Iterator[tuple[str, Differences]]]


class Goldens:
    """A folder of recorded numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def json(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def arrays(self, name: str) -> dict[str, Tensor]:
        """The arrays of an npz file; nothing is unpickled."""
        with np.load(self.folder / name, allow_pickle=False) as file:
            return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file."""
        return load_file(self.folder / name)

    def model(self, config: CCMConfig, adapter: str | None = None, stage1: str | None = None) -> CCMModel:
        """The tiny base model under a config, with one of the folder's adapters; EOS does not end a generation."""
        base = LlamaForCausalLM.from_pretrained(self.folder / "tiny-llama")
        base.generation_config.eos_token_id = None
        merged = read_stage1(self.folder / "adapters" / stage1) if stage1 else None
        model = CCMModel(base, config, stage1=merged).eval()
        if adapter:
            own = _to_ours(read_plain_lora(self.folder / "adapters" / adapter), config.n_tok)
            model.load_adapter({"comp_embeddings.weight": model.comp_embeddings.weight.detach(), **own}, adapter)
        return model


def _to_ours(lora: PlainLoRA, n_tok: int) -> dict[str, Tensor]:
    """The authors' tensors under our names; rows N..2N-1 of merge adapters are of SUM tokens; we have none."""
    comp = {} if lora.comp is None else {"comp_embeddings.weight": lora.comp[:n_tok]}
    return {**{name: tensor.float() for name, tensor in lora.tensors.items()}, **comp}


def _config(case: str, entry: dict[str, Any]) -> CCMConfig:
    rule = {"no": "full", "neg_control": "none", "pos_control": "pos_control", "fixed": "gist"}.get(entry["comp_type"])
    name, _, recurrent = entry["attn_type"].partition("_")
    alone = rule == "full" and entry["adapter"] is not None  # a stage-1 adapter, applied to all tokens unmerged
    return CCMConfig(
        rule=rule or name,
        recurrent=bool(recurrent),
        n_tok=entry["n_tok"],
        sink=entry["sink"],
        positions="base" if case.endswith("_basepos") else "skip",
        lora=LoRASettings(r=4, alpha=16, conditional=not (alone or case.endswith("_uncond_lora"))),
    )


def _parallel_model(goldens: Goldens, case: str, entry: dict[str, Any]) -> CCMModel:
    return goldens.model(_config(case, entry), entry["adapter"], entry["merged_base_adapter"])


def _samples(goldens: Goldens, config: CCMConfig, rule_forgets: bool) -> list[Sample]:
    """The batch of ``samples.json`` as steps: BOS or separator before each text, another separator after the query."""
    table = goldens.json("samples.json")
    sep, eos = table["sep"], table["eos"]
    samples = []
    for sample in table["samples"]:
        *contexts, query, target = sample["dialog"]
        steps = [Step([*([table["bos"]] if i == 0 else sep), *text]) for i, text in enumerate(contexts)]
        prompt = [*([table["bos"]] if rule_forgets else sep), *query, *sep]
        labels = [IGNORE] * (len(prompt) - 1) + [*target, eos] + [IGNORE]
        samples.append(Sample(steps, Step([*prompt, *target, eos], labels)))
    return samples


def check_parallel(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Layout, positions, masks, logits, losses, likelihoods and greedy tokens of the authors' parallel pass."""
    cases = goldens.json("manifest_parallel.json")["cases"]
    for case, entry in cases.items():
        gold = goldens.arrays(f"parallel/{case}.npz")
        model = _parallel_model(goldens, case, entry)
        samples = _samples(goldens, model.config, model.rule.forgets)
        layout = build_layout(samples, model.config, model.rule, pad_id=0)
        untrained = Layout(**{**vars(layout), "targets": torch.full_like(layout.targets, IGNORE)})
        with torch.no_grad():
            loss, logits = model(layout).loss, model(untrained).logits
        kept = gold["attention_mask"].bool() & ~gold.get("sum_mask", torch.zeros(())).bool()
        ours = layout.blocks >= 0
        yield (
            case,
            {
                "layout": _layout_difference(gold, kept, layout, ours, entry),
                "mask": _mask_difference(gold, kept, layout, ours, model),
                "logits": _largest(logits[ours], gold["logits"][kept]),
                "loss": _largest(loss, gold["loss"]),
                "log-likelihood": _likelihood_difference(gold, logits, layout),
                "greedy": _greedy_difference(gold, model, samples),
            },
        )
    for name, rows in goldens.arrays("init_comp_embeddings.npz").items() if cases else ():
        base = LlamaForCausalLM.from_pretrained(goldens.folder / "tiny-llama")
        yield f"initial embeddings {name}", {"embedding": _largest(initial_embeddings(base, len(rows)), rows)}


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
    """Differing cells of the mask; the authors' SUM columns are our appended memory columns."""
    current = ParallelPass(layout, model.rule, sink=model.config.sink)
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


def _likelihood_difference(gold: dict, logits: Tensor, layout: Layout) -> float:
    """Of sum, mean and number of the target tokens' log-likelihoods, EOS (id 2) excluded."""
    scored = (layout.targets != IGNORE) & (layout.targets != 2)
    each = logits.log_softmax(-1).gather(-1, layout.targets.clamp(min=0)[..., None])[..., 0] * scored
    total, number = each.sum(1), scored.sum(1)
    return max(
        _largest(total, gold["ll_sum"]), _largest(total / number, gold["ll_mean"]), _largest(number, gold["ll_length"])
    )


def _greedy_difference(gold: dict, model: CCMModel, samples: list[Sample]) -> float:
    """Each row's memory is built online, step by step; the rows then generate as one padded batch."""
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
    return float((_greedy(model, Memory.stack(memories), ids, mask) != gold["greedy"]).sum())


def _greedy(model: CCMModel, memory: Memory, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    return model.generate(memory, ids, mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)


def check_grads(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Gradients of the loss by every trained tensor."""
    for case, entry in goldens.json("manifest_parallel.json")["cases"].items():
        if entry["adapter"] is None:
            continue
        model = _parallel_model(goldens, case, entry)
        samples = _samples(goldens, model.config, model.rule.forgets)
        model(build_layout(samples, model.config, model.rule, pad_id=0)).loss.backward()
        own = {name: tensor.grad for name, tensor in model.adapter_tensors().items()}
        yield (
            case,
            {"gradient": _compare_tensors(goldens.tensors(f"grads/{case}.safetensors"), own, model.config.n_tok)},
        )


def _compare_tensors(gold: dict[str, Tensor], own: dict[str, Tensor | None], n_tok: int) -> float:
    """The largest difference, rows of SUM tokens left out; infinite where nothing was recorded."""
    largest = 0.0 if gold else float("inf")
    for name, tensor in gold.items():
        name = name.removeprefix("base_model.model.")
        if name.endswith("comp_embeddings.weight"):
            name, tensor = "comp_embeddings.weight", tensor[:n_tok]
        mine = own[name]
        largest = max(largest, _largest(torch.zeros_like(tensor) if mine is None else mine, tensor))
    return largest


def check_train(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Five AdamW steps."""
    manifest = goldens.json("manifest_parallel.json")
    cases = manifest["cases"]
    for name in manifest["train"]:
        case = name.removesuffix("_adamw5")
        gold = goldens.tensors(f"train/{name}.safetensors")
        expected = gold.pop("losses")
        model = _parallel_model(goldens, case, cases[case])
        layout = build_layout(_samples(goldens, model.config, model.rule.forgets), model.config, model.rule, pad_id=0)
        optimizer = torch.optim.AdamW(model.adapter_tensors().values(), lr=1e-3, weight_decay=0.0)
        losses = []
        for step in range(len(expected)):
            loss = model(layout).loss
            losses.append(loss.item())
            if step < len(expected) - 1:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        own = model.adapter_tensors()
        yield (
            case,
            {
                "parameter": _compare_tensors(gold, {k: v.detach() for k, v in own.items()}, model.config.n_tok),
                "loss": _largest(torch.tensor(losses, dtype=torch.float64), expected),
            },
        )


def _online_model(goldens: Goldens, case: str) -> CCMModel:
    name, _, rest = case.partition("_recur_ntok")
    n_tok, sink = int(rest.split("_")[0]), rest.endswith("_sink")
    config = CCMConfig(rule=name, n_tok=n_tok, sink=sink, lora=LoRASettings(r=4, alpha=16))
    return goldens.model(config, f"{name}_ntok{n_tok}")


def check_recursive(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """The online recursion: memory and offset after every step, then what a query reads from it."""
    for case in goldens.json("manifest_recursive.json")["recursive"]:
        gold = goldens.arrays(f"recursive/{case}.npz")
        model = _online_model(goldens, case)
        memory = model.empty_memory()
        worst: dict[str, float] = defaultdict(float)
        with torch.no_grad():
            for i in range(int(gold["n_ctx"])):
                text = gold[f"ctx_{i}"] if i == 0 else torch.cat([gold["sep"], gold[f"ctx_{i}"]])
                memory = model.compress(memory, text.long()[None])
                _raise_to(worst, _memory_differences(memory, gold, i))
            query, target = gold["query"].long(), gold["target"].long()
            logits = model.read(memory, torch.cat([query, target])[None])[0]
            loss = torch.nn.functional.cross_entropy(logits[len(query) - 1 : -1], target)
            alone = torch.cat([torch.tensor([1]), query[1:]])
        worst["logits"] = _largest(logits, gold["logits_recursive"])
        worst["loss"] = _largest(loss, gold["loss_recursive"])
        worst["greedy"] = float((_greedy(model, memory, query[None])[0] != gold["greedy_recursive"]).sum())
        nothing = _greedy(model, model.empty_memory(), alone[None])[0]
        worst["greedy"] += float((nothing != gold["greedy_nocontext"]).sum())
        yield case, dict(worst)


def check_interact(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """A chat: reply from the memory, then compress the exchange without the last token, as the authors do."""
    for case in goldens.json("manifest_recursive.json")["interact"]:
        gold = goldens.arrays(f"interact/{case}.npz")
        model = _online_model(goldens, case)
        memory = model.empty_memory()
        worst: dict[str, float] = defaultdict(float)
        for turn in range(sum(name.startswith("query_") for name in gold)):
            query, text = gold[f"query_{turn}"].long()[None], gold[f"text_{turn}"].long()[None]
            cache = memory.cache()
            reply = _greedy_with(model, memory, query, cache)
            worst["greedy"] += float((torch.cat([query, reply], dim=1)[:, :-1] != text).sum())
            with torch.no_grad():
                memory = model.compress(memory, text, cache=cache)
            _raise_to(worst, _memory_differences(memory, gold, turn))
        yield case, dict(worst)


def _greedy_with(model: CCMModel, memory: Memory, ids: Tensor, cache: Any) -> Tensor:
    return model.generate(memory, ids, cache=cache, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)


def _memory_differences(memory: Memory, gold: dict[str, Tensor], step: int) -> Differences:
    keys, values = torch.stack(memory.keys)[:, 0], torch.stack(memory.values)[:, 0]
    return {
        "kv": max(_largest(keys, gold[f"mem_k_{step}"]), _largest(values, gold[f"mem_v_{step}"])),
        "offset": _largest(memory.offset[0], gold[f"offset_{step}"]),
    }


def _raise_to(worst: dict[str, float], new: Differences) -> None:
    for quantity, difference in new.items():
        worst[quantity] = max(worst[quantity], difference)


def _largest(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where shapes differ or either is not a number."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    difference = (a.double() - b.double()).abs().max().item()
    return difference if difference == difference else float("inf")


GROUPS: dict[str, Group | None] = {
    "parallel": check_parallel,
    "grads": check_grads,
    "train": check_train,
    "recursive": check_recursive,
    "interact": check_interact,
    "stream": None,
    "t5": None,
    "adapters": None,
    "data": None,
    "metrics": None,
}


def run(folder: Path, groups: list[str]) -> bool:
    """Check the groups, print a line for each, and say whether all that is implemented passed."""
    goldens, passed = Goldens(folder), True
    print(f"{'group':<10} {'cases':>5}  {'largest differences':<76} result")
    for name in groups:
        check = GROUPS[name]
        if check is None:
            print(f"{name:<10} {'':>5}  {'':<76} not implemented")
            continue
        worst: dict[str, float] = defaultdict(float)
        failures, cases = [], 0
        try:
            for case, differences in check(goldens):
                cases += 1
                _raise_to(worst, differences)
                if not differences:
                    failures.append(f"{case}: nothing was compared")
                failures += [
                    f"{case}: {q} {d:.3g} > {TOLERANCE[q]:g}"
                    for q, d in differences.items()
                    if not d <= TOLERANCE[q]  # also where it is not a number
                ]
        except FileNotFoundError as error:
            failures.append(f"absent file: {error.filename or error}")
        except KeyError as error:
            failures.append(f"absent from the manifest, the recorded arrays or the model: {error}")
        if not cases:
            failures.append("no case was checked")
        passed &= not failures
        largest = ", ".join(f"{quantity} {difference:.2g}" for quantity, difference in worst.items())
        print(f"{name:<10} {cases:>5}  {largest:<76} {'FAILED' if failures else 'passed'}")
        for failure in failures:
            print(f"           {failure}")
    return passed


def main() -> None:
    """The command line: exit status 1 where anything differs, is absent, or was not checked."""
    parser = argparse.ArgumentParser(prog="python -m ccm.conformance", description=__doc__)
    parser.add_argument("goldens", type=Path, help="folder of recorded numbers")
    parser.add_argument("--group", choices=list(GROUPS), action="append", help="only this group (repeatable)")
    arguments = parser.parse_args()
    if not arguments.goldens.is_dir():
        parser.error(f"there is no folder {arguments.goldens}")
    quiet()
    raise SystemExit(0 if run(arguments.goldens, arguments.group or list(GROUPS)) else 1)


if __name__ == "__main__":
    main()
