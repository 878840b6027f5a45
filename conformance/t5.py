"""The group of the encoder-decoder: its results, its gradients, and the online recursion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration

from ccm.core.config import CCMConfig, LoRASettings
from ccm.data.metaicl import demonstrations_for
from ccm.engine.layout import IGNORE, Sample, Step
from ccm.engine.t5.encoder import EncoderLayout, EncoderPass, build_encoder_layout
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from conformance.data import examples, prompt_of
from conformance.goldens import Differences, Goldens, largest
from conformance.parallel import compare_tensors, under_our_names

NEW_TOKENS = 8
RULES = {"no": "full", "pos_control": "pos_control", "fixed": "gist"}  # by comp_type; else attn_type names the rule


class _Unmixed(EncoderPass):
    """Treats SUM tokens as ordinary tokens, as the authors' class for adapters that act at all tokens does."""

    def _mixing(self) -> None:
        return None


class _Ordinary(CCMEncoderDecoder):
    pass_type = _Unmixed


def check_t5(goldens: Goldens) -> Iterator[tuple[str, Differences]]:
    """Layout, masks, hidden states, logits, losses, likelihoods, greedy tokens and gradients of the authors' T5."""
    samples = goldens.json("t5/samples.json")
    for case, entry in goldens.json("t5/manifest.json").items():
        yield case, _differences(goldens, case, t5_model(goldens, entry), _samples(samples), samples["special"])
    yield "relative positions", _positions(goldens)


def t5_model(goldens: Goldens, entry: dict[str, Any]) -> CCMEncoderDecoder:
    """The tiny encoder-decoder of a recorded case."""
    base = T5ForConditionalGeneration.from_pretrained(goldens.folder / "t5/tiny-t5")
    base.generation_config.eos_token_id = None
    rule = RULES.get(entry["comp_type"], entry["attn_type"])
    lora = LoRASettings(r=4 if entry["conditional_lora"] else 0, alpha=16)
    config = CCMConfig(rule=rule, n_tok=entry["n_tok"], recurrent=False, lora=lora)
    model = (CCMEncoderDecoder if entry["conditional_lora"] else _Ordinary)(base, config).eval()
    if entry.get("adapter"):
        found = goldens.tensors(f"t5/adapters/{entry['adapter'].removesuffix('.safetensors')}.safetensors")
        named = {name.removeprefix("base_model.model.").removeprefix("shared."): x for name, x in found.items()}
        own = model.adapter_tensors()
        model.load_adapter({name: x for name, x in named.items() if name in own}, entry["adapter"])
    return model


def _samples(table: dict[str, Any]) -> list[Sample]:
    special = table["special"]
    prompt, samples = prompt_of(special, bos=False), []
    for asked in table["instances"]:
        pools = {seed: examples(pool, prompt) for seed, pool in table["demonstrations"][asked["task"]].items()}
        chosen = demonstrations_for(pools["100"], pools["13"], table["k"])
        (example,) = examples({"input": [asked["input"]], "output": [asked["output"]]}, prompt)
        question = prompt.question(example, chosen, table["max_length"], asked["task"])
        answer = [*question.answers[0], special["eos"]]
        query = Step([*question.query, *answer[:-1]], [*[IGNORE] * (len(question.query) - 1), *answer])
        samples.append(Sample([*map(Step, question.steps)], query))
    return samples


def _differences(
    goldens: Goldens, case: str, model: CCMEncoderDecoder, samples: list[Sample], special: dict[str, Any]
) -> Differences:
    gold = goldens.arrays(f"t5/cases/{case}.npz")
    layout = build_encoder_layout(samples, model.config, model.rule, special["pad"])
    kept, ours = gold["encoder_visible"].bool().any(1), layout.blocks >= 0
    said = layout.targets != IGNORE
    output = model(layout)
    output.loss.backward()
    with torch.no_grad():
        hidden = model.encode(model.pass_of(layout))
    found = {
        "layout": _layout_difference(gold, kept, layout, ours, special),
        "mask": _mask_difference(gold, kept, model, layout, ours),
        "hidden": largest(hidden[ours], gold["encoder_last_hidden"][kept]),
        "logits": largest(output.logits, gold["logits"][said]),
        "loss": largest(output.loss, gold["loss"]),
        "log-likelihood": _likelihood_difference(gold, output.logits, layout.targets, special["eos"]),
        "greedy": float((_greedy(model, samples) != gold["greedy"]).sum()),
    }
    if (goldens.folder / f"t5/grads/{case}.safetensors").is_file():
        recorded = {n.replace("shared.", ""): x for n, x in goldens.tensors(f"t5/grads/{case}.safetensors").items()}
        rows = len(model.comp_embeddings.weight)
        own = {name: tensor.grad for name, tensor in model.adapter_tensors().items()}
        found["gradient"] = compare_tensors(under_our_names(recorded, rows), own)
    return found


def _layout_difference(
    gold: dict[str, Tensor], kept: Tensor, layout: EncoderLayout, ours: Tensor, special: dict[str, Any]
) -> float:
    ids = torch.where(layout.slots >= 0, layout.slots + special["first_comp_id"], layout.ids)
    labels = gold["labels"]
    return float((ids[ours] != gold["input_ids"][kept]).sum() + (layout.targets != labels).sum())


def _mask_difference(
    gold: dict[str, Tensor], kept: Tensor, model: CCMEncoderDecoder, layout: EncoderLayout, ours: Tensor
) -> float:
    """The number of differing cells in the masks of the encoder, and of the decoder's cross-attention."""
    current, different = model.pass_of(layout), 0
    for row in range(len(kept)):
        recorded = gold["encoder_visible"][row].bool()[kept[row]][:, kept[row]]
        different += int((current.mask()[row, 0][ours[row]][:, ours[row]] != recorded).sum())
        different += int((current.cross[row][ours[row]] != gold["cross_visible"][row].bool()[kept[row]]).sum())
    return float(different)


def _likelihood_difference(gold: dict[str, Tensor], logits: Tensor, targets: Tensor, eos: int) -> float:
    """Compare sum, mean and number of the answers' log-likelihoods, without EOS."""
    said = targets != IGNORE
    each = torch.zeros(targets.shape, dtype=torch.float64)
    each[said] = logits.detach().double().log_softmax(-1).gather(1, targets[said][:, None])[:, 0]
    scored = said & (targets != eos)
    total, number = (each * scored).sum(1), scored.sum(1).double()
    ours = {"ll_sum": total, "ll_mean": total / number, "ll_length": number}
    return max(largest(ours[name], gold[name]) for name in ours)


def _greedy(model: CCMEncoderDecoder, samples: list[Sample]) -> Tensor:
    """Greedy tokens of each row, after its memory was built online."""
    said = []
    for sample in samples:
        memory = model.empty_memory()
        for step in sample.steps:
            memory = model.compress(memory, torch.tensor([[*step.ids]]))
        length = 1 + sum(target == IGNORE for target in sample.query.targets)
        query = torch.tensor([[*sample.query.ids[:length]]])
        said.append(model.generate(memory, query, max_new_tokens=NEW_TOKENS, do_sample=False)[0])
    return torch.stack(said)


def _positions(goldens: Goldens) -> Differences:
    """The relative position bias of 40 tokens."""
    gold = goldens.arrays("t5/relative_position.npz")
    base = T5ForConditionalGeneration.from_pretrained(goldens.folder / "t5/tiny-t5")
    model = CCMEncoderDecoder(base, CCMConfig(rule="full", recurrent=False))
    layout = build_encoder_layout([Sample([], Step([5] * 40))], model.config, model.rule, pad_id=0)
    return {"logits": largest(model.pass_of(layout).bias(torch.float32)[0], gold["encoder_bias_40"])}
