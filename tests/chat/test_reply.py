"""The token generator, and replies under way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_base, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_made import CHATML, LLAMA3, fallback_tokenizer, tokenizer
from transformers import PreTrainedTokenizerFast

from ccm.chat.reply import Reply, end_ids, replies_to, reply_to
from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError
from ccm.engine.sampling import Sampling, tokens

FORMATS = {"separators": TurnFormat(separator="\nU:", reply_separator="\nA:"), "chat": TurnFormat(template="chat")}
TOKENIZERS = {"bytes": tokenizer(CHATML), "fallback": fallback_tokenizer()}


def turns(name: str = "bytes", form: str = "separators") -> Turns:
    return make_turns(TOKENIZERS[name], FORMATS[form])


def typed(made: Turns, text: str, most: int = 1000, ends: tuple[int, ...] = ()) -> tuple[Reply, list[str]]:
    """A reply of which these tokens are said, one by one, and its pieces."""
    reply = Reply(made, ends, most)
    return reply, [reply.add(token) for token in made.tokenizer.encode(text, add_special_tokens=False)]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60)
@given(data=st.data())
def test_the_pieces_that_are_shown_are_the_reply(name: str, data: st.DataObject) -> None:
    made = turns(name)
    ids = data.draw(st.lists(st.integers(0, len(made.tokenizer) - 1), max_size=40))
    reply, shown = Reply(made, (), data.draw(st.integers(1, 40))), ""
    for token in ids:
        piece = reply.add(token)
        shown += piece
        assert reply.text == shown
    assert reply.text == reply.text.strip()
    if reply.ended and made.decode(reply.ids).startswith(shown):
        assert shown == made.decode(reply.ids)
    assert len(reply.said) <= len(ids)
    assert all(mark not in reply.text for mark in made.marks)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    "text", ["def f:\n    return x\n\n  y", "a  b", "na\u00efve \u20ac \U0001f600.", "\u4f60\u597d, a", "  x. "]
)
def test_a_text_is_shown_whole_with_its_spaces_and_no_character_in_pieces(name: str, text: str) -> None:
    reply, pieces = typed(turns(name), text)
    pieces.append(reply.add(turns(name).eos_id))
    assert "".join(pieces) == reply.text == text.strip()
    assert "\ufffd" not in "".join(pieces)
    assert reply.ended
    assert reply.ids == reply.said[:-1]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_may_begin_a_next_turn_is_held_back_until_it_does_or_does_not(name: str) -> None:
    for said, text, ended in (("so.\nu", "so.\nu", False), ("so.\nU: hi", "so.", True), ("so.\nA:", "so.", True)):
        reply, pieces = typed(turns(name), said)
        assert ("".join(pieces), reply.text, reply.ended) == (text, text, ended)
        if ended:
            assert turns(name).decode(reply.ids) == text
            assert len(reply.ids) < len(reply.said)
    reply, pieces = typed(turns(name), "so.\nU", most=5)
    assert reply.ended == (len(reply.said) == 5)
    assert reply.text in ("so.", "so.\nU")


def test_a_reply_ends_at_every_token_that_is_named_and_at_its_length() -> None:
    made = make_turns(tokenizer(LLAMA3), TurnFormat(template="chat"))
    named = made.tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>"])
    for ending in ("<|eot|>", "<|im_end|>", "</s>"):
        reply, _ = typed(made, f"So it is.{ending}Oh", ends=(*named,))
        assert (reply.text, reply.ended) == ("So it is.", True)
        assert made.tokenizer.decode(reply.said[-1]) == ending
    reply, _ = typed(made, "So it is.", most=5)
    assert (reply.text, reply.ended, len(reply.ids)) == ("So it", True, 5)


def base_with(value: object, size: int = 400) -> SimpleNamespace:
    """A model of so many tokens, whose settings name an end."""
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=size))
    return SimpleNamespace(config=config, generation_config=SimpleNamespace(eos_token_id=value))


def test_the_ends_are_the_tokenizers_and_all_that_the_model_names() -> None:
    made: PreTrainedTokenizerFast = tokenizer()
    own = made.eos_token_id
    for value, expected in ((None, {own}), (7, {7, own}), ([7, 9], {7, 9, own}), ([], {own})):
        assert end_ids(base_with(value), made) == expected
    bare = base_with(None)
    bare.generation_config = None
    assert end_ids(bare, made) == {own}


@pytest.mark.parametrize("value", ["</s>", [7, "x"], 1.5, True, -1, [[7]], 400, [7, 400], [None]])
def test_ends_that_are_no_tokens_are_refused_by_their_value(value: object) -> None:
    with pytest.raises(ConfigError, match=r"generation_config.json names .*eos_token_id.* 0 to 399, .*list"):
        end_ids(base_with(value), tokenizer())


def test_an_end_of_the_tokenizer_that_the_model_does_not_have_is_refused() -> None:
    made = tokenizer()
    with pytest.raises(ConfigError, match=f"The tokenizer names {made.eos_token_id} as the end"):
        end_ids(base_with(None, size=made.eos_token_id), made)


def test_tokens_are_those_of_stock_generate_and_are_read_when_the_next_is_asked_for() -> None:
    model = tiny_model("full", base=tiny_base())
    memory, ids = model.empty_memory(2), torch.tensor([[5, 6, 7], [9, 8, 7]])
    cache, read = memory.cache(), []
    reader = model.reader(memory, cache)

    def counted(given: torch.Tensor) -> torch.Tensor:
        read.append(given)
        return reader(given)

    said = []
    for chosen in tokens(reader(ids), counted):
        said.append(chosen)
        assert len(read) == len(said) - 1
        if len(said) == 8:
            break
    stock = model.base.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.stack(said, dim=1).equal(stock[:, 3:])
    assert cache.get_seq_length() == 3 + 7


def test_rows_of_a_batch_are_replied_to_as_each_alone() -> None:
    made = turns()
    model = tiny_model("full", base=tiny_base(vocab_size=len(made.tokenizer)))
    prompts, most = torch.tensor([[5, 6, 7], [9, 8, 7]]), (3, 9)
    replies = [Reply(made, (), n) for n in most]
    memory = model.empty_memory(2)
    reader = model.reader(memory, memory.cache())
    replies_to(reader(prompts), reader, replies)
    for reply, prompt, n in zip(replies, prompts.tolist(), most, strict=True):
        alone = Reply(made, (), n)
        memory = model.empty_memory()
        pieces = [*reply_to(prompt, model.reader(memory, memory.cache()), alone)]
        assert alone.ids == reply.ids
        assert "".join(pieces) == reply.text == alone.text


def test_the_source_of_chance_is_the_seeds_and_the_numbers() -> None:
    def drawn(seed: int | None, number: int) -> list[int]:
        sampling = Sampling(temperature=1.0, seed=seed)
        chance = sampling.generator(number)
        logits = torch.zeros(1, 1000)
        chosen = tokens(logits, lambda ids: logits, sampling, generator=chance)
        return [int(next(chosen)) for _ in range(5)]

    state = torch.get_rng_state()
    assert drawn(1, 2) == drawn(1, 2)
    assert torch.get_rng_state().equal(state), "torch's own generator is left alone"
    others = [drawn(1, 3), drawn(2, 2), drawn(2, 1), drawn(3, 0)]
    assert len({*map(tuple, [drawn(1, 2), *others])}) == 5
    torch.manual_seed(0)
    own = drawn(None, 0)
    torch.manual_seed(0)
    assert drawn(None, 5) == own


def test_bytes_that_are_no_character_take_nothing_of_what_follows() -> None:
    made = turns("fallback")
    ids = made.tokenizer.convert_tokens_to_ids(["\u2581", "h", "<0xC3>", "<0xA9>", "<0xFF>", "\u2581", "o", "k"])
    reply = Reply(made, (), 1000)
    pieces = [reply.add(token) for token in [*ids, made.eos_id]]
    assert "".join(pieces) == reply.text
    assert reply.text.startswith("h\u00e9")
    assert reply.text.endswith(" ok")
