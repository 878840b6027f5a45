"""The authors' side of :mod:`benchmarks.authors`: their code as it is, in a process of an interpreter that can run it.

``python authors_side.py CHECKOUT FOLDER``; nothing here imports our package, and their checkout is not changed. Models
come from their own functions, with the weights of FOLDER, in float32, their dropout at 0. Each line read is a JSON
request ``{"task": name, "answer": bool}``, each line written ``{"seconds": CPU time}``, with what was computed where
an answer is asked for.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

Work = tuple[Callable[[], Any], Callable[[Any], list[float]]]  # what is timed, and the numbers of what it computed


class Vocabulary:
    """All that their functions ask of a tokenizer."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.additional_special_tokens: list[str] = []
        self.comp_token_id: list[int] = []
        self.sum_token_id: list[int] | None = None

    def __len__(self) -> int:
        return self.size + len(self.additional_special_tokens)

    def add_special_tokens(self, tokens: dict[str, list[str]]) -> None:
        """Take the COMP and SUM tokens."""
        self.additional_special_tokens = tokens["additional_special_tokens"]

    @property
    def additional_special_tokens_ids(self) -> list[int]:
        """Their ids, after all others."""
        return [*range(self.size, len(self))]


class Theirs:
    """Their model under one rule, with an adapter of ours in their format.

    Args:
        folder: holds ``base`` and the adapters.
        task: names the adapter, and says N and whether there is a sink.
    """

    def __init__(self, folder: Path, task: dict[str, Any]) -> None:
        building, self.utils = import_module("src.model"), import_module("src.utils")
        rule, self.n_tok, self.sink = task["rule"], task["n_tok"], task["sink"]
        comp = SimpleNamespace(
            attn_type=f"{rule}_recur", num_comp_tokens=self.n_tok, separate_embed=True, sink=self.sink
        )
        adapter = str(folder / task["adapter"])
        training = SimpleNamespace(comp=comp, eval_path=adapter, peft=True)
        self.args, self.merges = SimpleNamespace(training=training, is_t5=False, is_llama=True), rule == "merge"
        config = transformers.LlamaConfig.from_pretrained(folder / "base")
        config.comp_relative_embedding, config.attn_type = "skip", comp.attn_type
        kind = building.LlamaForCausalLM_CCM_Stream if task["run"] == "stream" else building.LlamaForCausalLM_CCM
        base = kind.from_pretrained(folder / "base", config=config)
        self.tokens = Vocabulary(config.vocab_size)
        building.update_compression_token(self.args, base, self.tokens)
        self.model = building.get_conditional_lora(self.args, base)
        building.load_pretrained(adapter, self.model, lora=True)
        self.comp = torch.tensor([self.tokens.comp_token_id])

    def step(self, past: Any, text: Tensor, offset: int, number: int) -> Any:
        """Mem(t) from Mem(t-1), as their test of the recursion does it: the text, the COMP tokens, what is kept."""
        held, inner = past[0][0].shape[2] if past else 0, self.model.base_model.model
        read = inner(text, past_key_values=past, use_cache=True, pos_id_offset=offset)
        offset += text.shape[1]
        read = inner(self.comp, past_key_values=read.past_key_values, use_cache=True, pos_id_offset=offset)
        kept = [True] * held + [False] * text.shape[1] + [True] * self.n_tok
        kept[0] |= self.sink
        past = self.utils.extract_comp_results(read.past_key_values, torch.tensor(kept))
        return self.utils.merge_comp_results(past, self.n_tok, number) if self.merges and number else past

    def remember(self, steps: list[Tensor]) -> tuple[Any, int]:
        """The memory of all steps, and the tokens that they had."""
        past, offset = None, 0
        for number, text in enumerate(steps):
            past, offset = self.step(past, text, offset, number), offset + text.shape[1]
        return past, offset


def train(theirs: Theirs, task: dict[str, Any]) -> Work:
    """Forward and backward of one batch, and the gradient of the COMP embeddings. The masks are made beforehand."""
    steps, text = _texts(task)
    rows, model = len(text), theirs.model.train()
    marks = torch.tensor([[*theirs.tokens.comp_token_id, *(theirs.tokens.sum_token_id or ())]]).expand(rows, -1)
    ids = torch.cat([part for step in steps for part in (step, marks)] + [text], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -task["targets"] :] = ids[:, -task["targets"] :]
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask_comp"] = theirs.utils.prepare_attn_mask_comp(theirs.tokens, ids, theirs.args)
    embeddings = model.base_model.model.model.embed_tokens.comp_embeddings.weight

    def run() -> Tensor:
        model.zero_grad()
        loss: Tensor = model(**inputs).loss
        loss.backward()
        return loss

    return run, lambda loss: [loss.item(), *embeddings.grad[: theirs.n_tok].flatten().tolist()]


def compress(theirs: Theirs, task: dict[str, Any]) -> Work:
    """One step more into the memory of the others."""
    (steps, text), _ = _texts(task), theirs.model.eval()
    with torch.inference_mode():
        past, offset = theirs.remember(steps)

    @torch.inference_mode()
    def run() -> Any:
        return theirs.step(past, text, offset, len(steps))

    return run, lambda memory: [x for part in (0, 1) for layer in memory for x in layer[part].flatten().tolist()]


def generate(theirs: Theirs, task: dict[str, Any]) -> Work:
    """The greedy reply to a prompt after the memory, as their chat makes it."""
    (steps, text), model = _texts(task), theirs.model.eval()
    config = transformers.GenerationConfig(do_sample=False, bos_token_id=1, eos_token_id=None, pad_token_id=0)
    with torch.inference_mode():
        past, offset = theirs.remember(steps)

    @torch.inference_mode()
    def run() -> Any:
        return model.base_model.generate(
            text,
            past_key_values=past,
            pos_id_offset=offset,
            attention_mask=text.new_ones(1, past[0][0].shape[2] + text.shape[1]),
            max_length=text.shape[1] + task["new"],
            num_beams=1,
            return_dict_in_generate=True,
            generation_config=config,
        ).sequences

    return run, lambda ids: ids[0, text.shape[1] :].tolist()


def stream(theirs: Theirs, task: dict[str, Any]) -> Work:
    """Negative log-likelihoods of a text after another, a token at a time, under concat, as their evaluation reads."""
    (steps, text), model = _texts(task), theirs.model.eval()
    # Their command line is not used; what it takes its settings from does not load on Python 3.11.
    sys.modules |= {name: MagicMock() for name in ("hydra", "omegaconf", "omegaconf.dictconfig", "src.arguments")}
    evaluation: Any = import_module("src.test_stream")
    on_cpu = {"arange": lambda *args, device: torch.arange(*args)}  # it asks for CUDA
    evaluation.torch = SimpleNamespace(**vars(torch) | on_cpu)
    ids = torch.cat([*steps, text], dim=1)
    sizes = dict(task["stream"])
    cache_size = sizes.pop("window_size")

    @torch.no_grad()
    def read(past: Any, compressed: int, first: int, last: int) -> tuple[list[Tensor], Any, int]:
        losses = []
        for at in range(first, last):
            held = past[0][0].shape[2] if past else 0
            positions = torch.tensor([[held]])
            output = model(ids[:, at : at + 1], position_ids=positions, past_key_values=past, use_cache=True)
            past = output.past_key_values
            losses.append(cross_entropy(output.logits[0], ids[:, at + 1], reduction="none"))
            if held >= cache_size:
                past = evaluation.compression(
                    model, past, comp_token=theirs.comp, n_comp=compressed, pos_offset=positions, **sizes
                )
                compressed += 1
        return losses, past, compressed

    begun = ids.shape[1] - text.shape[1] - 1  # what is read last predicts the first token of the text
    _, past, compressed = read(None, 0, 0, begun)
    return lambda: read(past, compressed, begun, ids.shape[1] - 1)[0], lambda losses: torch.cat(losses).tolist()


WORK = {"train": train, "compress": compress, "generate": generate, "stream": stream}


def _texts(task: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
    return [torch.tensor(step) for step in task["context"]], torch.tensor(task["text"])


def main(checkout: str, folder: str) -> None:
    """Make all tasks, say so, and answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # their code prints
    sys.path.insert(0, checkout)
    torch.set_num_threads(1)
    tasks: dict[str, dict[str, Any]] = json.loads((Path(folder) / "tasks.json").read_text())
    work = {name: WORK[task["run"]](Theirs(Path(folder), task), task) for name, task in tasks.items()}
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions), file=answers, flush=True)
    gc.collect()
    gc.disable()
    for line in sys.stdin:
        request = json.loads(line)
        run, numbers = work[request["task"]]
        begin = time.process_time()
        computed = run()
        reply: dict[str, Any] = {"seconds": time.process_time() - begin}
        if request["answer"]:
            reply["answer"] = numbers(computed)
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
