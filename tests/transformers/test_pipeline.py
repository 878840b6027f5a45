"""The pipeline, on the built-in model and on a tiny one with a chat template."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import PRODUCTS, assert_close, tiny_base, tiny_model
from tokenizers_made import OPEN_THOUGHT, tokenizer
from transformers import GenerationConfig, TextStreamer, pipeline

import ccm
from ccm.chat.conversation import Conversation
from ccm.core.errors import ConfigError, InputError, PositionError
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling
from ccm.models.builtin import WEIGHTS
from ccm.transformers import TASK, MemoryTextGeneration

LINES = ("My name is Anna.", "I live in Oslo.", "What is my name?")


@pytest.fixture(scope="module", params=["concat", "gate", "gist", "template"])
def pipe(request: pytest.FixtureRequest) -> MemoryTextGeneration:
    if request.param == "template":
        made = tokenizer(OPEN_THOUGHT, eos="<|im_end|>")
        base = tiny_base(vocab_size=len(made), max_position_embeddings=512)
        turns = ccm.TurnFormat(template="chat")
        return pipeline(TASK, model=tiny_model(base=base, turns=turns), tokenizer=made, max_new_tokens=6)
    if request.param == "gist":
        made = ccm.load("builtin")[1]
        model = tiny_model("gist", base=tiny_base(vocab_size=len(made), max_position_embeddings=512))
        return pipeline(TASK, model=model, tokenizer=made, max_new_tokens=6)
    model, made = ccm.load("builtin", rule=request.param)
    return pipeline(TASK, model=model, tokenizer=made)


@pytest.fixture(scope="module")
def builtin() -> MemoryTextGeneration:
    return pipeline(TASK, dtype="float32")


def talk(*texts: str) -> list[dict[str, str]]:
    """A chat of these texts in turn; the last is the user's."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def check_memory(memory: Memory, expected: Memory) -> None:
    assert memory.steps == expected.steps
    for one, other in zip(memory.keys + memory.values, expected.keys + expected.values, strict=True):
        assert_close(one, other, depth=PRODUCTS)


@pytest.mark.covers("pipe", "system")
@pytest.mark.parametrize("system", ["", "You are kind."])
def test_replies_and_memories_are_those_of_a_conversation(pipe, system: str, monkeypatch) -> None:
    most = pipe._forward_params.get("max_new_tokens", 256)
    chat = Conversation(pipe.model, pipe.tokenizer, sampling=Sampling(max_new_tokens=most), system=system)
    steps: list = []
    together = ccm.transformers.pipeline.compress_together
    monkeypatch.setattr(
        "ccm.transformers.pipeline.compress_together",
        lambda model, memories, given, caches: steps.extend(given) or together(model, memories, given, caches),
    )
    messages: list = [{"role": "system", "content": system}] if system else []
    memory = None
    for line in LINES:
        messages.append({"role": "user", "content": line})
        (result,) = pipe(messages, memory=memory)
        reply = chat.answer(line)
        assert result["generated_text"] == [*messages, {"role": "assistant", "content": reply}]
        assert steps[-1] == chat.read[-1], "the very tokens"
        check_memory(result["memory"], chat.memory)
        assert chat.last is not None
        numbers = chat.last.to_dict()
        sizes = ("memory_entries", "memory_bytes", "full_context_tokens", "full_context_bytes")
        assert [result[name] for name in sizes] == [numbers[name] for name in sizes]
        messages, memory = [], result["memory"]


@pytest.mark.parametrize("pipe", ["concat", "gate"], indirect=True)
def test_a_memory_stands_for_the_chat_before_it(pipe) -> None:
    (first,) = pipe(talk("My name is Anna."))
    (whole,) = pipe([*first["generated_text"], *talk("What is my name?")])
    (after,) = pipe(talk("What is my name?"), memory=first["memory"], return_full_text=False)
    assert after["generated_text"] == whole["generated_text"][-1]["content"]
    check_memory(after["memory"], whole["memory"])
    assert first["memory"].steps[0] == after["memory"].steps[0][:1]


@pytest.mark.covers(cases=2)
def test_a_batch_gives_what_each_chat_gives_alone(pipe) -> None:
    chats = [
        talk("My name is Anna.", "Nice to meet you, Anna!", "What is my name?"),
        talk("Hello!"),
        talk("I live in Oslo.", "I see.", "I have a cat.", "Lovely.", "Where do I live?"),
    ]
    pipe.tokenizer.pad_token_id = pipe.tokenizer.eos_token_id
    alone = [pipe(chat) for chat in chats]
    for together in (pipe(chats), pipe(chats, batch_size=2), [*pipe((chat for chat in chats), batch_size=3)]):
        for (one,), (other,) in zip(alone, together, strict=True):
            assert one["generated_text"] == other["generated_text"]
            check_memory(other["memory"], one["memory"])


def test_what_fills_a_row_that_has_ended_is_in_no_reply(builtin) -> None:
    chats = [talk("Hello!"), talk("My name is Anna.", "Nice to meet you, Anna!", "What is my name?")]
    filled = builtin.tokenizer.encode("x", add_special_tokens=False)[0]
    options = {"stop_strings": [" name", "!"], "stopping_criteria": None}
    together = builtin(chats, batch_size=2, pad_token_id=filled, **options)
    for (one,), chat in zip(together, chats, strict=True):
        (alone,) = builtin(chat, **options)
        assert one["generated_text"] == alone["generated_text"]
        check_memory(one["memory"], alone["memory"])


def test_text_is_continued_as_the_stock_model_continues_it(pipe) -> None:
    ids = pipe.tokenizer.encode("My name is", add_special_tokens=False)
    first = [] if pipe.tokenizer.bos_token_id is None else [pipe.tokenizer.bos_token_id]
    with torch.no_grad():
        stock = pipe.model.base.generate(torch.tensor([[*first, *ids]]), max_new_tokens=4, do_sample=False)
    new = stock[0, len(first) + len(ids) :].tolist()
    (result,) = pipe("My name is", max_new_tokens=4)
    assert result["generated_text"] == "My name is" + pipe.tokenizer.decode(new, skip_special_tokens=True)
    assert result["full_context_tokens"] == len(first) + len(ids) + 4
    (again,) = pipe(" and", memory=result["memory"], max_new_tokens=2)
    step = pipe.tokenizer.encode(" and", add_special_tokens=False)
    assert [step.tokens for step in again["memory"].steps[0]] == [len(first) + len(ids) + 4, len(step) + 2]


def test_several_results_of_sampling_or_beams_have_memories_of_their_own(builtin) -> None:
    chat = talk("My name is Anna.", "Nice to meet you, Anna!", "I have a dog.")
    for how in ({"do_sample": True, "temperature": 3.0}, {"num_beams": 3, "do_sample": False}):
        results = builtin(chat, num_return_sequences=3, max_new_tokens=8, **how)
        assert len({result["generated_text"][-1]["content"] for result in results}) > 1
        assert {result["memory_entries"] for result in results} == {4}
        assert len({float(result["memory"].keys[-1].sum()) for result in results}) > 1


def test_options_of_generate_are_those_of_generate(builtin, capsys) -> None:
    chat = talk("My name is Anna.", "Nice to meet you, Anna!", "What is my name?")
    said: Any = lambda **options: builtin(chat, **options)[0]["generated_text"][-1]["content"]  # noqa: E731
    whole = said(streamer=TextStreamer(builtin.tokenizer, skip_prompt=True, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == whole == "Your name is Anna."
    assert said(max_new_tokens=2) == said(generation_config=GenerationConfig(max_new_tokens=2)) != whole
    assert said(stop_strings="name") == "Your name"
    assert said(stopping_criteria=[lambda ids, scores: torch.ones(len(ids), dtype=torch.bool)]) == "Your"
    with pytest.raises(InputError, match="give max_new_tokens"):
        said(max_length=30)
    with pytest.raises(InputError, match="max_new_tokens is 0; a reply has at least 1"):
        said(max_new_tokens=0)
    assert builtin([]) == []
    with pytest.raises(ValueError, match="colour"):
        said(colour="red")


def test_a_reply_ends_where_a_next_turn_begins(builtin) -> None:
    turn = builtin.tokenizer.encode("Hello.<|user|>Hello.<|user|>", add_special_tokens=False)
    asked = []

    def forced(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        asked.append(ids.shape[1])
        likely = torch.full_like(scores, -1e9)
        likely[:, turn[len(asked) - 1]] = 0.0
        return likely

    results = builtin([talk("Hello!")], num_return_sequences=2, do_sample=True, logits_processor=[forced])[0]
    assert [result["generated_text"][-1]["content"] for result in results] == ["Hello."] * 2
    assert len(asked) == len(turn) // 2, "nothing is generated beyond it"


def test_tools_stand_beside_the_system_message(monkeypatch) -> None:
    given: list = []
    monkeypatch.setattr(
        "ccm.transformers.pipeline.Conversation",
        lambda *args, **options: given.append(options) or Conversation(*args, system=options["system"]),
    )
    pipe, tool = pipeline(TASK), {"type": "function", "function": {"name": "weather"}}
    pipe([{"role": "system", "content": "A."}, {"role": "system", "content": "B."}, *talk("Hello!")], tools=[tool])
    assert given == [{"system": "A.\n\nB.", "tools": [tool]}]


def test_a_stock_model_takes_an_adapter_by_its_folder() -> None:
    folder = str(WEIGHTS / "base")
    pipe = pipeline(TASK, model=folder, adapter=WEIGHTS / "merge", dtype="float32")
    assert pipe.model.config.rule == "merge"
    assert repr(pipe) == f"MemoryTextGeneration({folder!r}, rule='merge')"
    model, made = ccm.load("builtin", rule="merge", dtype="float32")
    (result,) = pipe(talk("My name is Anna."))
    assert result["generated_text"][-1]["content"] == Conversation(model, made).answer("My name is Anna.")
    again = MemoryTextGeneration(pipe.model.base, pipe.tokenizer, adapter=f"{WEIGHTS / 'merge'}/../merge/")
    assert again.model is pipe.model
    with pytest.raises(ConfigError, match="already has an adapter"):
        MemoryTextGeneration(pipe.model.base, pipe.tokenizer, adapter=WEIGHTS / "concat")
    with pytest.raises(ConfigError, match=r"ccm\.load has its adapter already"):
        MemoryTextGeneration(pipe.model, pipe.tokenizer, adapter=WEIGHTS / "merge")
    with pytest.raises(ConfigError, match="adapter=FOLDER"):
        MemoryTextGeneration(tiny_base(), pipe.tokenizer)


def test_a_pipeline_saves_its_adapter(builtin, tmp_path: Path) -> None:
    builtin.save_pretrained(tmp_path)
    again = pipeline(TASK, model=str(WEIGHTS / "base"), adapter=tmp_path, dtype="float32")
    assert again.model.origin == builtin.model.origin


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (talk("Hello!", "Hello."), "asks for nothing"),
        ([*talk("Hello!"), {"role": "system", "content": "Be kind."}], "those of a memory stand before all"),
        (talk(" "), "empty"),
        ("", "empty"),
        ([7], "must be a text"),
        ([{"role": "system", "content": None}, *talk("Hello!")], "message of the system is None"),
        ([{"role": "assistant", "content": None}, *talk("Hello!")], "message of the assistant is None"),
    ],
)
def test_what_cannot_be_answered_is_refused(builtin, given: Any, error: str) -> None:
    with pytest.raises(InputError, match=error):
        builtin(given)


def test_a_memory_that_cannot_go_on_is_refused(builtin) -> None:
    memory = builtin(talk("Hello!"))[0]["memory"]
    with pytest.raises(InputError, match="memory is 'my-memory'; give a ccm.Memory"):
        builtin(talk("Hello!"), memory="my-memory")
    with pytest.raises(InputError, match="custom_generate"):
        builtin(talk("Hello!"), custom_generate=print)
    with pytest.raises(InputError, match="holds 2 conversations"):
        builtin(talk("Hello!"), memory=Memory.stack([memory, memory]))
    gist = tiny_model("gist", base=tiny_base(vocab_size=4000))
    pipe = pipeline(TASK, model=gist, tokenizer=builtin.tokenizer)
    with pytest.raises(InputError, match="was closed"):
        pipe(talk("Hello!"), memory=gist.close(gist.compress(gist.empty_memory(), torch.tensor([[5, 6]]))))
    with pytest.raises(PositionError, match="made for 3072"):
        builtin("word " * 4000)


def test_the_package_itself_imports_none_of_it() -> None:
    code = "import ccm, sys; sys.exit(bool({'transformers', 'ccm.transformers'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
