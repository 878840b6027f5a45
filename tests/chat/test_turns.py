"""Turns as token ids: separators, exchanges and chat templates of several characters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers_made import (
    BARE,
    CHATML,
    LLAMA3,
    NO_SYSTEM,
    OPEN_THOUGHT,
    SPECIAL,
    THINKING,
    TOOL,
    fallback_tokenizer,
    spaced_tokenizer,
    tokenizer,
)

from ccm.chat.turns import TemplateTurns, Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, InputError
from ccm.engine.layout import IGNORE


def turns(template: str | None = None, *, preamble: str = "", system: str = "", **kwargs: object) -> Turns:
    """Turns of the byte tokenizer: by separators without a template, by it with one."""
    form = TurnFormat(template="chat" if template else "separators", preamble=preamble)
    return make_turns(tokenizer(template, **kwargs), form, system)


def read(made: Turns, ids: list[int]) -> str:
    """All that the ids say, special tokens included."""
    return made.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_separators_as_token_ids(adds_bos: bool) -> None:
    made = turns(adds_bos=adds_bos)
    bos = made.tokenizer.bos_token_id
    byte = made.tokenizer.get_vocab()
    assert made.prompt("hi", first=True) == [bos, byte["h"], byte["i"], *made._format("\nAssistant:")]
    assert made.prompt("hi", first=False) == made._format("\nUser:hi\nAssistant:")
    assert made.prompt("hi", first=False).count(bos) == 0


def test_the_preamble_precedes_the_first_turn_only() -> None:
    made = turns(preamble="System: kind. \n\n")
    assert read(made, made.prompt("hi", first=True)) == "<s>System: kind. \n\nhi\nAssistant:"
    assert read(made, made.prompt("hi", first=False)) == "\nUser:hi\nAssistant:"


def test_a_tokenizer_without_bos_begins_with_the_text() -> None:
    made = turns(bos=None)
    assert read(made, made.prompt("hi", first=True)) == "hi\nAssistant:"


def test_a_separator_within_a_text_gets_no_space_of_its_own() -> None:
    made = make_turns(spaced_tokenizer(), TurnFormat(separator="\nU:", reply_separator="\nA:"))
    names = made.tokenizer.convert_ids_to_tokens(made.prompt("hi", first=False))
    assert names == ["\n", "U", ":", "\u2581", "h", "i", "\n", "A", ":"]
    first = made.tokenizer.convert_ids_to_tokens(made.prompt("hi", first=True))
    assert first == ["<s>", "\u2581", "h", "i", "\n", "A", ":"]


def test_a_space_at_the_end_of_a_separator_is_kept() -> None:
    made = make_turns(spaced_tokenizer(), TurnFormat(separator="\nU: ", reply_separator=" A: "))
    names = made.tokenizer.convert_ids_to_tokens(made.prompt("hi", first=False))
    assert "".join(names).startswith("\nU:\u2581")
    assert "".join(names).endswith("hi\u2581A:\u2581")


@pytest.mark.parametrize("template", [None, CHATML, LLAMA3, THINKING])
@pytest.mark.parametrize("first", [True, False])
def test_an_exchange_trains_the_reply_and_the_eos_that_is_never_read(template: str | None, first: bool) -> None:
    made = turns(template)
    prompt, reply = made.prompt("hello", first=first), made.encode_reply("fine.")
    step = made.exchange("hello", "fine.", first=first)
    assert list(step.ids) == prompt + reply
    assert step.ids[-1] != made.eos_id
    assert len(step.targets) == len(step.ids)
    assert list(step.targets[: len(prompt) - 1]) == [IGNORE] * (len(prompt) - 1)
    assert list(step.targets[len(prompt) - 1 :]) == [*reply, made.eos_id]


def test_a_chat_template_ends_replies_with_its_own_token() -> None:
    made = turns(CHATML, eos="</s>")
    end = made.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (made.eos_id, turns(BARE, eos="</s>").eos_id) == (end, made.tokenizer.eos_token_id)
    assert made.exchange("hi", "yes", first=True).targets[-1] == end


def test_the_eos_is_the_tokenizers_own() -> None:
    assert turns(CHATML, eos="<|im_end|>").eos_id == tokenizer().convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("text", ["", " ", "\n\t "])
@pytest.mark.parametrize("template", [None, CHATML])
def test_an_empty_text_is_refused(template: str | None, text: str) -> None:
    for first in (True, False):
        with pytest.raises(InputError, match="is empty"):
            turns(template).prompt(text, first=first)


def test_chatml_turns() -> None:
    made = turns(CHATML, eos="<|im_end|>")
    assert read(made, made.prompt("hi", first=True)) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    later = "<|im_end|>\n<|im_start|>user\nso<|im_end|>\n<|im_start|>assistant\n"  # begins with what closes the reply
    assert read(made, made.prompt("so", first=False)) == later
    assert made.head == []
    start = made.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert made.prompt("hi", first=True)[0] == start
    assert made.prompt("hi", first=True).count(start) == 2


@pytest.mark.parametrize("adds_bos", [False, True])
def test_llama_3_turns_have_one_bos_and_it_comes_first(adds_bos: bool) -> None:
    made = turns(LLAMA3, adds_bos=adds_bos, eos="<|eot|>")
    header = "<|head|>{}<|/head|>\n\n"
    turn = header.format("user") + "hi<|eot|>" + header.format("assistant")
    assert read(made, made.head) == "<s>"
    assert read(made, made.prompt(" hi ", first=True)) == turn
    assert read(made, made.prompt(" hi ", first=False)) == "<|eot|>" + turn


def test_the_system_message_is_in_the_first_turn_only() -> None:
    made = turns(LLAMA3, preamble="Be kind.")
    assert read(made, made.prompt("hi", first=True)).startswith("<s><|head|>system<|/head|>\n\nBe kind.<|eot|><|head|>")
    assert "kind" not in read(made, made.prompt("hi", first=False))


def test_a_template_that_shows_earlier_replies_otherwise_still_gives_the_turn_alone() -> None:
    made = turns(THINKING, eos="<|im_end|>")
    turn = "<|im_end|>\n<|im_start|>user\nso<|im_end|>\n<|im_start|>assistant\n"
    assert read(made, made.prompt("so", first=False)) == turn
    assert "think" not in read(made, made.prompt("so", first=False))


def test_a_user_may_write_the_marker_of_the_alignment() -> None:
    made = turns(THINKING, eos="<|im_end|>")
    for text in (TemplateTurns._MARKER, f"a {TemplateTurns._MARKER}- b"):
        expected = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        assert read(made, made.prompt(text, first=True)) == expected
        assert read(made, made.prompt(text, first=False)) == "<|im_end|>\n" + expected


def test_a_template_without_any_marks_between_turns() -> None:
    made = turns(BARE)
    assert read(made, made.prompt("hi", first=True)) == "hi\n"
    assert read(made, made.prompt("so", first=False)) == "\nso\n"


def test_a_template_that_knows_no_system_role_works_without_one_and_refuses_one_clearly() -> None:
    made = turns(NO_SYSTEM)
    assert read(made, made.prompt("hi", first=True)).startswith("<|im_start|>user")
    with pytest.raises(ConfigError, match=r"System role not supported|system"):
        turns(NO_SYSTEM, preamble="Be kind.").prompt("hi", first=True)


def test_a_template_that_drops_replies_is_refused() -> None:
    users_only = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(ConfigError, match="drops the assistant's replies"):
        turns(users_only).prompt("hi", first=False)


def test_a_tokenizer_without_what_the_format_needs_is_refused() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        make_turns(tokenizer(), TurnFormat(template="chat"))
    without_eos = tokenizer()
    without_eos.eos_token = None
    with pytest.raises(ConfigError, match="no EOS"):
        make_turns(without_eos, TurnFormat())


def test_a_reply_decodes_to_its_text() -> None:
    made = turns()
    assert made.decode([*made.encode_reply(" d\u00e9j\u00e0 vu \n"), made.eos_id]) == "d\u00e9j\u00e0 vu"


PARTS = st.sampled_from([*SPECIAL, TOOL, "tea", " ", "\n", "<", "|im_start|>", "ccm-quoted-0", TemplateTurns._MARKER])
COMPOSED = CHATML.replace("<|im_start|>{{ m.role }}", "{{ '<|' + 'im_start' + '|>' + m.role }}")
REPEATED = (  # the system message in every turn of the user
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role != 'system' %}<|im_start|>{{ m.role }}\n{% if m.role == 'user' %}{{ system }}\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TWICE = CHATML.replace("{{ m.content }}", "{{ m.content }}{% if m.role == 'user' %} ({{ m.content }}){% endif %}")
TEMPLATES = [None, CHATML, LLAMA3, THINKING, OPEN_THOUGHT, COMPOSED, REPEATED, TWICE]


@pytest.mark.covers("template", "merges")
@pytest.mark.parametrize("merges", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=15)
@given(parts=st.lists(PARTS, max_size=5), first=st.booleans())
@example(parts=[TOOL], first=True)
@example(parts=["ccm-quoted-0", TOOL, "ccm-quoted-1"], first=False)
@example(parts=[" ", TOOL, "</s>", TOOL, "<|im_end|>"], first=False)
def test_what_a_user_writes_never_becomes_a_token_that_steers_the_model(
    template: str | None, merges: bool, parts: list[str], first: bool
) -> None:
    made, text = turns(template, preamble="Say </s> kindly.", merges=merges), "x" + "".join(parts) + "y"
    steering = {*made.tokenizer.added_tokens_decoder}

    def steered(ids: list[int]) -> list[int]:
        return [token for token in ids if token in steering]

    plain = [made.prompt("xy", first=first), [*made.exchange("xy", "z", first=first).ids]]
    quoted = [made.prompt(text, first=first), [*made.exchange(text, "z", first=first).ids]]
    assert [*map(steered, quoted)] == [*map(steered, plain)]
    for with_text, without in zip(quoted, plain, strict=True):
        assert read(made, with_text) == read(made, without).replace("xy", text)
    statements = [steered([*made.statement(one, first=first).ids]) for one in ("xy", text)]
    assert statements[0] == statements[1]


@settings(max_examples=30)
@given(said=st.sampled_from([None, CHATML, LLAMA3]), parts=st.lists(PARTS, max_size=4))
def test_no_end_is_learned_within_a_reply(said: str | None, parts: list[str]) -> None:
    made = turns(said)
    reply = made.encode_reply("x" + "".join(parts) + "y")
    assert not {*reply} & {token for token, added in made.tokenizer.added_tokens_decoder.items() if added.special}


def test_a_text_that_the_template_hides_is_refused_by_its_name() -> None:
    made = turns(CHATML.replace("{{ m.content }}", "{{ m.content.split('ccm-quoted')[0] }}"))
    with pytest.raises(InputError, match="'<think>'"):
        made.prompt("<think>", first=True)


def test_a_thought_that_the_template_opens_for_a_reply_is_neither_learned_nor_remembered() -> None:
    made = turns(OPEN_THOUGHT, eos="<|im_end|>")
    user = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    for first, past in ((True, user), (False, "<|im_end|>\n" + user)):
        asked = past + "<think>\n"
        prompt = made.prompt("hi", first=first)
        assert read(made, prompt) == asked
        for reply in ("Fine.", "I see.</think>\n\nFine."):
            assert read(made, [*made.exchange("hi", reply, first=first).ids]) == past + "Fine."
            generated = made._format(reply)
            assert read(made, made.remembered("hi", prompt, generated, first=first)) == past + "Fine."
    plain = turns(CHATML)
    prompt = plain.prompt("hi", first=True)
    assert plain.remembered("hi", prompt, [5, 6], first=True) == [*prompt, 5, 6]


@pytest.mark.parametrize("text", [7, None, b"hi", "a\ud83d", ["hi"]])
@pytest.mark.parametrize("template", [None, CHATML])
def test_what_is_no_text_is_refused_by_its_value(template: str | None, text: object) -> None:
    made = turns(template)
    for call in (
        lambda: made.prompt(text, first=True),
        lambda: made.statement(text, first=False),
        lambda: made.exchange("hi", text, first=True),
    ):
        with pytest.raises(InputError, match=r"must be a string|surrogate"):
            call()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (" Fine, ", None),
        ("Fine.\nA: And you?\nA:", "Fine."),
        ("Fine.\nB: And", "Fine."),
        ("Fine.\nA", None),
        ("\nA:", ""),
    ],
)
@pytest.mark.parametrize("make", [tokenizer, fallback_tokenizer])
def test_a_reply_is_cut_where_a_turn_begins(make, said: str, kept: str | None) -> None:
    made = make_turns(make(), TurnFormat(separator="\nA:", reply_separator="\nB:"))
    cut = made.cut(made.encode_reply(said))
    assert (cut if cut is None else made.decode(cut)) == kept


def test_a_separator_may_be_a_special_token_but_white_space_alone_ends_nothing() -> None:
    made = make_turns(tokenizer(), TurnFormat(separator="<|head|>", reply_separator=" \n"))
    assert made.marks == ["<|head|>"]
    assert made.decode(made.cut(made._format("So \nit is.<|head|>Oh")) or []) == "So \nit is."


@pytest.mark.parametrize("template", [None, CHATML, LLAMA3, THINKING])
def test_turns_end_where_a_later_one_begins(template: str | None) -> None:
    made = make_turns(tokenizer(template), TurnFormat(template="chat" if template else "separators"))
    said = [("Yes", "No"), ("User: 42", "Good"), ("Yes", "")]
    steps = [made.exchange(*pair, first=i == 0).ids for i, pair in enumerate(said)]
    ids = torch.tensor([[token for step in steps for token in step]])
    ends = [len(steps[0]) - 1, len(steps[0]) + len(steps[1]) - 1]
    assert made.ends(ids)[0].nonzero().flatten().tolist() == ends
    assert made.ends(ids[:, 1:])[0].nonzero().flatten().tolist() == [end - 1 for end in ends]  # the first is a sink
    assert not made.ends(ids[:, :2]).any()
    assert not made.ends(ids[:, ends[0] + 1 : ends[1]]).any(), "nothing has ended before the text that is asked about"


@pytest.mark.parametrize("template", [None, CHATML, LLAMA3])
def test_a_system_message_is_no_turn_of_its_own(template: str | None) -> None:
    made = turns(template, preamble="Be kind.\nUser:")
    first, later = made.exchange("Yes", "No", first=True).ids, made.prompt("42", first=False)
    both = torch.tensor([[*first, *later], [*later, *first]])
    for cut in (0, 1):
        assert made.ends(both[:1, cut:]).nonzero()[:, 1].tolist() == [len(first) - 1 - cut]
    assert not made.ends(both[:, : len(made.prompt("Yes", first=True)) - 5])[0].any()
    assert made.ends(both)[0].sum() == 1


@pytest.mark.parametrize(
    ("template", "first", "later"),
    [
        (None, "<s>Be kind. Hi all.", "\nUser:Hi all."),
        (
            CHATML,
            "<|im_start|>system\nBe kind. <|im_end|>\n<|im_start|>user\nHi all.",
            "<|im_end|>\n<|im_start|>user\nHi all.",
        ),
        (
            LLAMA3,
            "<s><|head|>system<|/head|>\n\nBe kind.<|eot|><|head|>user<|/head|>\n\nHi all.",
            "<|eot|><|head|>user<|/head|>\n\nHi all.",
        ),
    ],
)
def test_a_statement_is_a_turn_without_a_reply_and_its_text_is_learned(
    template: str | None, first: str, later: str
) -> None:
    made = turns(template, preamble="Be kind. ")
    for opens, expected in ((True, first), (False, later)):
        step = made.statement("Hi all.", first=opens)
        assert read(made, [*step.ids]) == expected
        learned = [(i, target) for i, target in enumerate(step.targets) if target != IGNORE]
        assert read(made, [target for _, target in learned]) == "Hi all."
        assert all(step.ids[i + 1] == target for i, target in learned)


def test_without_anything_between_turns_none_is_found_to_end() -> None:
    made = make_turns(tokenizer(), TurnFormat(separator=""))
    assert not made.ends(torch.arange(20)[None]).any()
