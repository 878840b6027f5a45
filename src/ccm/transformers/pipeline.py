"""The pipeline ``ccm-text-generation``: chats whose past is compressed, or text that follows a memory.

chat    exchanges of the past -> memory       the last message -> generate -> reply -> memory
text                             memory       the text         -> generate -> more  -> memory
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    Pipeline,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils.chat_template_utils import Chat

from ccm.chat.conversation import Conversation
from ccm.chat.exchanges import Exchanges
from ccm.chat.reply import Reply, end_ids
from ccm.chat.turns import Message
from ccm.core.errors import ConfigError, InputError
from ccm.core.plain_text import PlainText
from ccm.engine.batching import compress_together, padded
from ccm.engine.decoder import CCMModel, as_decoder
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.transformers.adapting import under_adapter

LONGEST = 256  # new tokens, where neither the call nor the model's generation_config.json says how many


class Prompt(ABC):
    """What ``generate`` goes on with.

    Attributes:
        memory: of one conversation, before the prompt.
        ids: token ids of the prompt.
        most: tokens for which there are positions after it.
        ends: tokens that end what follows.
    """

    memory: Memory
    ids: list[int]
    most: int
    ends: frozenset[int]

    def ended(self, new: Sequence[int]) -> bool:
        """Whether the new tokens are complete, though none of :attr:`ends` is among them."""
        return False

    @abstractmethod
    def followed(self, new: Sequence[int]) -> tuple[str, Any, list[int]]:
        """The text of new tokens, the prompt with it, and the token ids of the step that both become."""


class ChatPrompt(Prompt):
    """The last message of a chat, after a memory of the exchanges before it.

    Args:
        model: the model; it reads these exchanges.
        tokenizer: its tokenizer.
        messages: the chat.
        memory: what stands before it; nothing where None.
        tools: definitions of tools.
        most: the longest reply that is wanted, in tokens.

    Raises:
        InputError: when the chat asks for nothing, or a message cannot be read.
    """

    def __init__(
        self,
        model: CCMModel,
        tokenizer: PreTrainedTokenizerBase,
        messages: Sequence[Message],
        memory: Memory | None,
        tools: Sequence[Message],
        most: int,
    ) -> None:
        told = Exchanges()
        for message in messages:
            told.add(message)
        told.check_asked()
        chat = Conversation(
            model, tokenizer, memory, Sampling(max_new_tokens=most), system="\n\n".join(told.system), tools=tools
        )
        for said, reply in told.exchanges:
            chat.hear(said, reply)
        self._messages, self._asked, self._turns = messages, told.asked, chat.turns
        self.memory, self.ids, _ = chat.placed_prompt(told.asked)
        self.most = chat.most(self.memory, self.ids)
        self.ends = end_ids(model.base, tokenizer) | {chat.turns.eos_id}

    def ended(self, new: Sequence[int]) -> bool:
        return self._turns.cut(new) is not None

    def followed(self, new: Sequence[int]) -> tuple[str, list[Message], list[int]]:
        reply = Reply(self._turns, self.ends, len(new))
        for token in new:
            reply.add(token)
        step = self._turns.remembered(self._asked, self.ids, reply.ids, first=not self.memory.begun[0])
        return reply.text, [*self._messages, {"role": "assistant", "content": reply.text}], step


class TextPrompt(Prompt):
    """A text that is continued as it stands, after a memory.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        text: the text.
        memory: what stands before it; nothing where None.

    Raises:
        InputError: when the text is empty, or cannot be read.
    """

    def __init__(self, model: CCMModel, tokenizer: PreTrainedTokenizerBase, text: str, memory: Memory | None) -> None:
        if not text:
            raise InputError("The text is empty; write some, or give a chat.")
        self._text, self._tokenizer = text, tokenizer
        self.memory, bos = memory or model.empty_memory(), tokenizer.bos_token_id
        first = [] if bos is None or self.memory.begun[0] else [bos]
        self.ids = [*first, *PlainText(tokenizer).encode(text)]
        room = model.max_positions - model.config.n_tok - self.memory.ends[0] - len(self.ids)
        self.most = max(room, 1)  # generate refuses a text that leaves none
        self.ends = end_ids(model.base, tokenizer)

    def followed(self, new: Sequence[int]) -> tuple[str, str, list[int]]:
        kept = [*new[: next((i for i, token in enumerate(new) if token in self.ends), len(new))]]
        text = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text, self._text + text, [*self.ids, *kept]


class PromptsEnd(StoppingCriteria):
    """Ends each row where its prompt says so; with beams, several rows follow one prompt.

    Args:
        prompts: of the rows.
        begin: tokens of the longest prompt, behind which the new ones stand.
    """

    def __init__(self, prompts: Sequence[Prompt], begin: int) -> None:
        self._prompts, self._begin = prompts, begin

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        rows = input_ids[:, self._begin :].tolist()
        each = len(rows) // len(self._prompts)
        ended = [self._prompts[number // each].ended(row) for number, row in enumerate(rows)]
        return torch.tensor(ended, device=input_ids.device)


class MemoryTextGeneration(Pipeline):
    """Text generation after a compressed memory, as ``pipeline("ccm-text-generation")`` makes it.

    Args:
        model: what :func:`ccm.load` returns; or a stock model, as ``pipeline`` loads it.
        tokenizer: its tokenizer.
        adapter: for a stock model, the folder or Hub id of an adapter; one that ships for the model where None.
        device: where the model goes; where None, a loaded model stays where it is.
        options: those of every pipeline, and of every call.

    Raises:
        ConfigError: when a stock model comes without an adapter, or a loaded one with another.
        AdapterError: when the adapter is absent, damaged, or of another base model.
        UnsupportedModelError: when the model is no decoder of a supported type.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(
        self,
        model: CCMModel | CCMEncoderDecoder | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter: str | Path | None = None,
        device: int | str | torch.device | None = None,
        **options: Any,
    ) -> None:
        stock = isinstance(model, PreTrainedModel)
        if device is None and not (stock and getattr(model, "hf_device_map", None) is None):
            device = model.device
        if stock:
            model = under_adapter(model, adapter)
        elif adapter is not None:
            raise ConfigError("A model of ccm.load has its adapter already; name it there, as its adapter.")
        model = as_decoder(model, "this pipeline")
        super().__init__(model=model, tokenizer=tokenizer, device=device, **options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.base.name_or_path!r}, rule={self.model.config.rule!r})"

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write the adapter into a folder (:meth:`CCMModel.save_pretrained`); the base stays where it is."""
        self.model.save_pretrained(save_directory)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Answer a chat or continue a text, or each of several.

        Args:
            inputs: a list of messages with role and content, the last of the user; a text; or a list of either.
            options: ``memory`` (:class:`Memory` of one conversation, from which all inputs go on), ``tools`` (their
                definitions), ``return_full_text`` (False: the new text alone), ``batch_size``, and those of
                ``generate``. At most 256 new tokens where none says else.

        Returns:
            For each input a list of as many results as ``num_return_sequences`` says, each with ``generated_text`` (a
            chat with the reply, or the continued text), ``memory`` after it, ``memory_entries`` and ``memory_bytes``,
            and ``full_context_tokens`` and ``full_context_bytes``, which the whole text would take.

        Raises:
            InputError: when an input cannot be read, does not fit the model's positions, or the memory is closed, of
                several conversations, or of another model.
        """
        return super().__call__(inputs, **options) if not isinstance(inputs, list) or inputs else []

    def _sanitize_parameters(
        self,
        memory: Memory | None = None,
        tools: Sequence[Message] | None = None,
        return_full_text: bool | None = None,
        **generating: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        given = {"memory": memory, "tools": tools}
        forward = {name: value for name, value in given.items() if value is not None} | generating
        return {}, forward, {} if return_full_text is None else {"return_full_text": return_full_text}

    def preprocess(self, asked: str | Chat) -> dict[str, str | Chat]:
        if not isinstance(asked, str | Chat):
            raise InputError(f"The input is {asked!r}; it must be a text, or a list of messages with role and content.")
        return {"asked": asked}

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, list]:
        asked = inputs["asked"]
        batch = isinstance(asked, list)
        results = self._answer(asked if batch else [asked], **options)
        return {"results": results if batch else results[0]}

    def postprocess(self, outputs: dict[str, Any], return_full_text: bool = True) -> list[dict[str, Any]]:
        results = [dict(result) for result in outputs["results"]]
        for result in results:
            new = result.pop("new_text")
            result["generated_text"] = result["generated_text"] if return_full_text else new
        return results

    def _answer(
        self,
        asked: Sequence[str | Chat],
        memory: Memory | None = None,
        tools: Sequence[Message] = (),
        **options: Any,
    ) -> list[list[dict[str, Any]]]:
        """The results of each of several inputs; generate makes them together."""
        model, tokenizer = self.model, self.tokenizer
        if memory is not None and not isinstance(memory, Memory):
            raise InputError(f"memory is {memory!r}; give a ccm.Memory, such as model.load_memory(FILE).")
        if "custom_generate" in options:
            raise InputError("The pipeline has a memory of its own; call generate of model.base with custom_generate.")
        if memory is not None and (memory.closed or memory.batch != 1):
            what = "was closed" if memory.closed else f"holds {memory.batch} conversations"
            raise InputError(f"This memory {what}; give an open one of one conversation, such as memory[0].")
        most = _most(options, model.base.generation_config)
        prompts = [
            TextPrompt(model, tokenizer, one, memory)
            if isinstance(one, str)
            else ChatPrompt(model, tokenizer, one.messages, memory, tools, most)
            for one in asked
        ]
        ids, mask = padded([prompt.ids for prompt in prompts])
        told = getattr(options.get("generation_config"), "eos_token_id", None)
        also = told if isinstance(told, list) else [] if told is None else [told]
        ends = sorted(frozenset(also).union(*(prompt.ends for prompt in prompts)))
        stops = [*(options.pop("stopping_criteria", None) or ()), PromptsEnd(prompts, ids.shape[1])]
        new = model.generate(
            Memory.stack([prompt.memory for prompt in prompts]),
            ids,
            mask,
            **{"eos_token_id": ends, **options, "pad_token_id": ends[0]},  # what fills ended rows must end replies
            tokenizer=tokenizer,  # for stop strings
            max_new_tokens=min(most, *(prompt.most for prompt in prompts)),
            stopping_criteria=StoppingCriteriaList(stops),
        ).tolist()
        each = len(new) // len(prompts)
        followed = [prompts[row // each] for row in range(len(new))]
        texts, wholes, steps = zip(*(p.followed(row) for p, row in zip(followed, new, strict=True)), strict=True)
        memories = compress_together(model, [prompt.memory for prompt in followed], steps, [None] * len(steps))
        results = [_result(*row) for row in zip(texts, wholes, memories, strict=True)]
        return [results[i : i + each] for i in range(0, len(results), each)]


def _most(options: dict[str, Any], config: GenerationConfig) -> int:
    """The longest reply that is wanted, in tokens, taken out of the options of a call.

    Raises:
        InputError: when it is said by max_length, or below 1.
    """
    if options.get("max_length"):
        raise InputError("max_length counts the prompt, and here a memory stands before it; give max_new_tokens.")
    configs = (options.get("generation_config"), config)
    told = [options.pop("max_new_tokens", None), *(getattr(one, "max_new_tokens", None) for one in configs)]
    most = next((most for most in told if most is not None), LONGEST)
    if most < 1:
        raise InputError(f"max_new_tokens is {most}; a reply has at least 1.")
    return most


def _result(text: str, whole: Any, memory: Memory) -> dict[str, Any]:
    (tokens,), (entries,) = memory.tokens, memory.entries
    return {
        "generated_text": whole,
        "new_text": text,
        "memory": memory,
        "memory_entries": entries,
        "memory_bytes": memory.nbytes,
        "full_context_tokens": tokens,
        "full_context_bytes": tokens * memory.entry_nbytes,
    }
