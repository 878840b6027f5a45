"""The groups of the online recursion: a context of steps, and a chat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from ccm.core.config import CCMConfig, LoRASettings
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory
from conformance.goldens import Differences, Goldens, greedy, largest, raise_to


def _online_model(goldens: Goldens, case: str) -> CCMModel:
    name, _, rest = case.partition("_recur_ntok")
    n_tok, sink = int(rest.split("_")[0]), rest.endswith("_sink")
    config = CCMConfig(rule=name, n_tok=n_tok, sink=sink, lora=LoRASettings(r=4, alpha=16))
    return goldens.model(config, f"{name}_ntok{n_tok}")


def check_recursive(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """The online recursion: memory and offset after every step, then the logits of a query that reads the memory."""
    for case in goldens.json("manifest_recursive.json")["recursive"]:
        gold = goldens.arrays(f"recursive/{case}.npz")
        model = _online_model(goldens, case)
        memory = model.empty_memory()
        worst: dict[str, float] = defaultdict(float)
        with torch.no_grad():
            for i in range(int(gold["n_ctx"])):
                text = gold[f"ctx_{i}"] if i == 0 else torch.cat([gold["sep"], gold[f"ctx_{i}"]])
                memory = model.compress(memory, text.long()[None])
                raise_to(worst, _memory_differences(memory, gold, i))
            query, target = gold["query"].long(), gold["target"].long()
            logits = model.read(memory, torch.cat([query, target])[None])[0]
            loss = torch.nn.functional.cross_entropy(logits[len(query) - 1 : -1], target)
            alone = torch.cat([torch.tensor([1]), query[1:]])
        worst["logits"] = largest(logits, gold["logits_recursive"])
        worst["loss"] = largest(loss, gold["loss_recursive"])
        worst["greedy"] = float((greedy(model, memory, query[None])[0] != gold["greedy_recursive"]).sum())
        nothing = greedy(model, model.empty_memory(), alone[None])[0]
        worst["greedy"] += float((nothing != gold["greedy_nocontext"]).sum())
        yield case, dict(worst)


def check_interact(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """A chat: reply from the memory, then compress the exchange without its last token, as the authors do."""
    for case in goldens.json("manifest_recursive.json")["interact"]:
        gold = goldens.arrays(f"interact/{case}.npz")
        model = _online_model(goldens, case)
        memory = model.empty_memory()
        worst: dict[str, float] = defaultdict(float)
        for turn in range(sum(name.startswith("query_") for name in gold)):
            query, text = gold[f"query_{turn}"].long()[None], gold[f"text_{turn}"].long()[None]
            cache = memory.cache()
            reply = greedy(model, memory, query, cache=cache)
            worst["greedy"] += float((torch.cat([query, reply], dim=1)[:, :-1] != text).sum())
            with torch.no_grad():
                memory = model.compress(memory, text, cache=cache)
            raise_to(worst, _memory_differences(memory, gold, turn))
        yield case, dict(worst)


def _memory_differences(memory: Memory, gold: dict[str, Tensor], step: int) -> Differences:
    keys, values = torch.stack(memory.keys)[:, 0], torch.stack(memory.values)[:, 0]
    return {
        "kv": max(largest(keys, gold[f"mem_k_{step}"]), largest(values, gold[f"mem_v_{step}"])),
        "offset": largest(memory.offset[0], gold[f"offset_{step}"]),
    }
