"""The group of streams: negative log-likelihoods, and the cache's size and compressions after every token."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ccm.core.config import CCMConfig, LoRASettings
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory
from conformance.goldens import Differences, Goldens, largest

_SLIP = "_asis"  # cases of a bug in the authors' code, which averages keys into values; ccm does not have it


def check_stream(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Streams of 1,000 tokens. Keys are recorded without rotary embedding, so keys of ccm are rotated to position 0."""
    for case in goldens.json("manifest_stream.json")["cases"]:
        if case.endswith(_SLIP):
            continue
        gold = goldens.arrays(f"stream/{case}.npz")
        kind, n_tok = case.split("_")[0], int(gold["n_tok"])
        rule = "concat" if kind == "comparison" else kind
        config = CCMConfig(rule=rule, n_tok=n_tok, lora=LoRASettings(r=4, alpha=16))
        settings = StreamSettings(
            cache_size=int(gold["window_size"]),
            span=int(gold["comp_size"]),
            memory_size=int(gold["comp_cache_size"]),
            sink=int(gold["sink_size"]),
            evict="blocks" if kind == "comparison" else "compress",
        )
        stream = StreamingMemory(goldens.model(config, f"{rule}_ntok{n_tok}"), settings)
        lengths: list[int] = []
        evictions: list[int] = []
        nll = []
        for reading in stream.passes(gold["tokens"].long()[None, : len(gold["kv_len"])]):
            before = stream.tokens - reading.ids.shape[1]
            start = lengths[-1] if before else 0
            lengths += [*range(start + 1, start + reading.ids.shape[1]), stream.entries]
            evictions += [evictions[-1] if before else 0] * (reading.ids.shape[1] - 1) + [stream.evictions]
            nll.append(reading.nll[0])
        assert stream.last is not None  # the logits that predict the last token, which is never read
        nll.append(-stream.last.log_softmax(-1)[:, gold["tokens"][-1].long()])
        held = stream.held.entries
        plain = held.moved(stream.rope, -torch.arange(len(held)))
        yield (
            case,
            {
                "nll": largest(torch.cat(nll), gold["nll"].float()),
                "length": largest(torch.tensor(lengths), gold["kv_len"].long()),
                "compressions": largest(torch.tensor(evictions), gold["n_comp"].long()),
                "kv": max(
                    largest(torch.stack(plain.keys)[:, 0], gold["final_k"]),
                    largest(torch.stack(plain.values)[:, 0], gold["final_v"]),
                ),
            },
        )
