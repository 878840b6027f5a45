"""Tasks of lm-eval with their context in memory: the model ``ccm``, which importing this module registers.

text    description, demonstration   demonstration   question  ->  answer       pieces between blank lines
chat    system message = head        exchange        question  ->  answer       messages
                step                     step          query
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ccm.chat.exchanges import Exchanges
from ccm.chat.reply import end_ids
from ccm.chat.turns import make_turns
from ccm.core.config import bounded, build_settings, check_fields
from ccm.core.errors import ConfigError
from ccm.core.processes import get_logger
from ccm.data.questions import Question
from ccm.engine.decoder import CCMModel, as_decoder
from ccm.engine.layout import padded
from ccm.evaluation.answering import likelihood
from ccm.evaluation.scoring import Scorer
from ccm.models.load import load

_log = get_logger(__name__)
_CHAT = "\x1e"  # before a context that is messages as JSON
_LONGEST = 256  # tokens of an answer, where a task does not say


@dataclass(frozen=True)
class Context:
    """A context as token ids.

    Attributes:
        head: what stands before all steps, and is not compressed.
        steps: what is compressed, piece by piece.
        query: what an answer follows.
        bare: the query as it reads where no step stands before it.
    """

    head: list[int]
    steps: list[list[int]]
    query: list[int]
    bare: list[int]

    def alone(self) -> Context:
        """Without its steps."""
        return replace(self, steps=[], query=self.bare)

    @property
    def ids(self) -> list[int]:
        """All of it, as full context reads it."""
        return [*self.head, *(token for step in self.steps for token in step), *self.query]


@dataclass(frozen=True)
class HarnessSettings:
    """What ``model_args`` may say, and how lm-eval calls the model.

    Attributes:
        model: folder, Hub id, GGUF file or short name of the base.
        adapter: folder or Hub id of an adapter.
        rule: of memory; ``full`` has the whole context in view, ``none`` the question alone.
        n_tok: COMP tokens of a step; the adapter's own where None.
        recurrent: whether a step sees the memory while it is read; the adapter's own where None.
        dtype: of the weights.
        quantize: ``int8``, ``8bit`` or ``4bit``.
        strict: refuse a quantized or fine-tuned relative of the adapter's base.
        delimiter: what ends a step of a context without chat template: the task's ``fewshot_delimiter``.
        window: tokens of a step where the likelihood of a whole text is asked for.
        device: of the model; a CUDA device, lm-eval's default, where there is one.
        batch_size: answers that are scored together.
        max_batch_size: is ignored.

    Raises:
        ConfigError: when a value is not allowed.
    """

    model: str | None = None
    adapter: str | None = None
    rule: str | None = None
    n_tok: int | None = None
    recurrent: bool | None = None
    dtype: str = "auto"
    quantize: str | None = None
    strict: bool = False
    delimiter: str = "\n\n"
    window: int = bounded(512, 1)
    device: str | None = None
    batch_size: int | str | None = 16
    max_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        size = "16" if self.batch_size is None else str(self.batch_size)
        if not (size.isascii() and size.isdigit() and int(size)):
            raise ConfigError(f"batch_size is {self.batch_size!r}; give a number from 1, such as batch_size=16.")
        if not self.delimiter:
            raise ConfigError("delimiter is ''; give what stands between demonstrations, such as delimiter=###.")

    def load(self) -> tuple[CCMModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer."""
        absent = not torch.cuda.is_available() and str(self.device).startswith("cuda")
        choice: dict[str, Any] = {
            name: getattr(self, name) for name in ("rule", "n_tok", "recurrent", "dtype", "quantize", "strict")
        }
        model, tokenizer = load(self.model, self.adapter, device=None if absent else self.device, **choice)
        return as_decoder(model, "lm-eval").eval(), tokenizer

    @property
    def batch(self) -> int:
        """Answers that are scored together, as a number."""
        return 16 if self.batch_size is None else int(self.batch_size)


@register_model("ccm")
class MemoryLM(TemplateLM):
    """A model whose few-shot demonstrations, or other pieces of the context, are compressed step by step.

    Its arguments are the fields of :class:`HarnessSettings`.

    Raises:
        ConfigError: when an argument is unknown or its value not allowed.
        UnsupportedModelError: when the model is an encoder-decoder.
    """

    def __init__(self, model: str | None = None, **values: Any) -> None:
        super().__init__()
        settings = build_settings(HarnessSettings, {"model": model, **values}, "model_args")
        self.model, self.tokenizer = settings.load()
        if not self.tokenizer.is_fast:
            raise ConfigError("The tokenizer is a slow one, which does not say where in a text its tokens stand.")
        self.scorer = Scorer(self.model, batch=settings.batch)
        self._delimiter, self._window = settings.delimiter.replace("\\n", "\n"), settings.window
        self._turns = make_turns(self.tokenizer, self.model.config.turns)
        self._cut = False  # whether a context was, which is told once

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> MemoryLM:
        """As lm-eval's own, but ``rule=none`` is the rule of that name, not the absence of one."""
        values = simple_parse_args_string(arg_string)
        if "rule" in values and values["rule"] is None:
            values["rule"] = "none"
        return cls.create_from_arg_obj(values, additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> MemoryLM:
        """As lm-eval's own, but what ``model_args`` say wins."""
        return cls(**{**{name: one for name, one in (additional_config or {}).items() if one is not None}, **arg_dict})

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval keeps requests under."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, with BOS where the tokenizer puts one and the text has none."""
        return self._encoded(string, add_special_tokens)["input_ids"]

    def _encoded(self, text: str, special: bool | None = None) -> Mapping[str, Any]:
        bos = self.tokenizer.bos_token
        if special is None:
            special = not (bos and text.startswith(bos))
        return self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as they are: their turns become steps later."""
        return _CHAT + json.dumps({"messages": chat_history, "reply": add_generation_prompt}, ensure_ascii=False)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The turns that the adapter was trained with."""
        return None if chat_template is False else str(self.model.config.turns)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context.startswith(_CHAT):
            return super()._encode_pair(context, continuation)
        asked, space = self._scored(context)
        return asked.ids, [*space, *self.tok_encode(continuation, add_special_tokens=False)]

    def _scored(self, context: str) -> tuple[Context, list[int]]:
        """A context in pieces, for a likelihood: white space at its end is lm-eval's to score, with the answer."""
        asked = self._asked(context.rstrip() or context)
        end = len(asked.query)
        while end > 1 and self.tokenizer.decode(asked.query[end - 1]).isspace():
            end -= 1
        space = asked.query[end:]
        return replace(asked, query=asked.query[:end], bare=asked.bare[: len(asked.bare) - len(space)]), space

    def _asked(self, context: str) -> Context:
        """A context in pieces; of a rule that forgets them, the query alone."""
        if context.startswith(_CHAT):
            asked = self._chat(**json.loads(context.removeprefix(_CHAT)))
        else:
            asked = self._text(context)
        return asked.alone() if self.model.rule.forgets else asked

    def _text(self, text: str) -> Context:
        if not text:
            return Context([], [], [self.prefix_token_id], [self.prefix_token_id])
        encoded = self._encoded(text)
        ids, begins = encoded["input_ids"], [begin for begin, _ in encoded["offset_mapping"]]
        ends, at, last = [0], 0, 0
        while (found := text.find(self._delimiter, at)) >= 0:
            at = found + len(self._delimiter)
            if ends[-1] < (end := bisect_left(begins, at)) < len(ids):
                ends.append(end)
                last = at
        steps = [ids[begin:end] for begin, end in pairwise(ends)]
        return Context([], steps, ids[ends[-1] :], self.tok_encode(text[last:]))

    def _chat(self, messages: Sequence[dict[str, str]], *, reply: bool) -> Context:
        begun = [] if reply or messages[-1]["role"] != "assistant" else [messages[-1]["content"]]
        told = Exchanges()
        for message in messages[: -1 if begun else None]:
            told.add(message)
        turns = self._turns.under("\n\n".join(told.system))
        steps = [turns.exchange(said, answer, first=not i).ids for i, (said, answer) in enumerate(told.exchanges)]
        begin = turns.encode_reply(begun[0]) if begun else []
        later, alone = ([*turns.prompt(told.asked, first=first), *begin] for first in (not steps, True))
        return Context(turns.head, [*map(list, steps)], later, alone)

    def _fitted(self, asked: Context, longest: int) -> Context:
        """A context that leaves positions for an answer: the oldest steps go, then the begin of the query."""
        comp = self.model.config.n_tok if self.model.config.positions == "base" else 0
        room = self.model.max_positions - len(asked.head) - longest - self.model.config.n_tok
        steps = asked.steps
        while steps and sum(len(step) + comp for step in steps) > room - len(asked.query):
            steps = steps[1:]
        fitted = replace(asked, steps=steps) if steps else asked.alone()
        fitted = replace(fitted, query=fitted.query[-room:] if room > 0 else [])
        if not fitted.query:
            raise ConfigError(
                f"An answer of {longest} tokens does not fit the model's {self.model.max_positions} positions. Let the "
                "task generate less (max_gen_toks)."
            )
        if len(steps) < len(asked.steps) or len(fitted.query) < min(len(asked.query), len(asked.bare)):
            if not self._cut:
                _log.warning("A context is longer than the model's positions; its oldest steps are left out.")
            self._cut = True
        return fitted

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        questions = []
        for context, alike in groupby(requests, lambda one: one[0][0]):  # its choices follow one another
            every = [answer for _, _, answer in alike]
            asked = self._fitted(self._scored(context)[0], max(map(len, every)))
            for begin in range(0, len(every), self.scorer.batch):  # tasks without context have one for all
                answers = every[begin : begin + self.scorer.batch]
                questions.append(Question(asked.steps, asked.query, answers, head=asked.head))
        found = list[tuple[float, bool]]()
        with tqdm(total=len(questions), desc="Answering", disable=disable_tqdm) as bar:

            def show(done: int) -> None:
                bar.update(done - bar.n)

            for scored in self.scorer.score(questions, show):
                found += [(answer.total, answer.likeliest) for answer in scored.answers]
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], one)
        return found

    @torch.inference_mode()
    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, each in windows of which those before are in memory."""
        found = []
        for request in tqdm(requests, desc="Reading", disable=disable_tqdm):
            (text,) = request.args
            found.append(sum(self._rolled(self.tok_encode(text, add_special_tokens=False))))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def _rolled(self, ids: Sequence[int]) -> Iterator[float]:
        model, memory = self.model, self.model.empty_memory()
        read, told = [self.prefix_token_id, *ids[:-1]], [*ids]
        for begin in range(0, len(told), self._window):
            window = torch.tensor([read[begin : begin + self._window]])
            memory = model.make_room(memory, window.shape[1] + model.config.n_tok)
            logits = model.read(model.close(memory), window)[0]
            yield likelihood(logits, told[begin : begin + self._window])
            memory = model.compress(memory, window)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to one of the texts that end it."""
        options = [normalize_gen_kwargs(request.args[1], _LONGEST) for request in requests]
        asked = [
            self._fitted(self._asked(request.args[0]), told["max_gen_toks"])
            for request, told in zip(requests, options, strict=True)
        ]

        def kind(number: int) -> tuple[str, int]:
            return json.dumps(options[number], sort_keys=True), len(asked[number].steps)

        order = sorted(range(len(asked)), key=lambda number: (*kind(number), len(asked[number].ids)))
        found = dict[int, str]()
        with tqdm(total=len(asked), desc="Writing", disable=disable_tqdm) as bar:
            for _, alike in groupby(order, kind):
                rows = [*alike]
                for begin in range(0, len(rows), self.scorer.batch):
                    part = rows[begin : begin + self.scorer.batch]
                    texts = self._written([asked[number] for number in part], **options[part[0]])
                    found.update(zip(part, texts, strict=True))
                    bar.update(len(part))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[number])
        return [found[number] for number in range(len(asked))]

    def _written(
        self, asked: Sequence[Context], until: Sequence[str] | str, max_gen_toks: int, **options: Any
    ) -> list[str]:
        questions = [Question(one.steps, one.query, [one.query], head=one.head) for one in asked]
        memory = self.scorer.write(questions)[0]
        stops = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
        ends = sorted({*end_ids(self.model.base, self.tokenizer), self._turns.eos_id})
        told: dict[str, Any] = {"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}
        ids, mask = padded([one.query for one in asked])
        new = self.model.generate(
            memory,
            ids,
            mask,
            max_new_tokens=max_gen_toks,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **told,
            **options,
        )
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [_before(text, stops) for text in texts]


def _before(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.split(stop)[0]
    return text
