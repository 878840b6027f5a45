"""Your own data: which files are read, what is refused and told, and which samples are drawn."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_made import CHATML, OPEN_THOUGHT, THINKING, tokenizer

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data import open_data
from ccm.data.custom import CustomTask, open_task, read_examples
from ccm.data.examples import Examples
from ccm.data.kinds import Chat, TaskExample
from ccm.data.settings import DataSettings
from ccm.data.tasks import TaskSettings
from ccm.engine.layout import IGNORE, Sample, Step, length
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


def messages(*texts: str, system: str = "") -> dict[str, Any]:
    """A conversation of a user and an assistant by turns."""
    said = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *said]}


def chat(number: int, count: int) -> dict[str, Any]:
    """A conversation of so many turns; every text of it occurs nowhere else."""
    return messages(*(text for i in range(count) for text in (f"Ask {number} {i}.", f"Say {number} {i}.")))


def task(answer: str, *others: str) -> dict[str, Any]:
    """A task; where there are other choices, with choices."""
    return {"steps": ["One."], "query": "Sum?", "answer": answer, "choices": [answer, *others] if others else []}


def write(path: Path, *lines: Any) -> Path:
    """A file of lines, written as JSON where they are no text."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def opened(path: Path, turns: Turns, *, seed: int = 0, **settings: Any) -> Examples:
    data = open_data(DataSettings(path=str(path), **settings), turns, seed)
    assert isinstance(data, Examples)
    return data


def texts(turns: Turns, sample: Sample) -> list[str]:
    return [turns.tokenizer.decode(step.ids) for step in (*sample.steps, sample.query)]


def taught(turns: Turns, step: Step) -> str:
    return turns.tokenizer.decode([target for target in step.targets if target != IGNORE])


def refusal(path: Path, turns: Turns, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(path, turns, **settings)
    return str(caught.value)


# Forms ---------------------------------------------------------------------------------------------------------------


def test_messages_become_steps_whose_replies_are_targets(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.jsonl", messages("Hi.", "Hello.", "Who are you?", "A bot.", "Bye.", "See you."))
    sample = opened(path, turns, random_steps=False).pool(0, 1)[0]
    assert texts(turns, sample) == [
        "<s>Hi.\nAssistant:Hello.",
        "\nUser:Who are you?\nAssistant:A bot.",
        "\nUser:Bye.\nAssistant:See you.",
    ]
    assert [taught(turns, step) for step in (*sample.steps, sample.query)] == [
        "Hello.</s>",
        "A bot.</s>",
        "See you.</s>",
    ]


def test_a_task_has_its_steps_as_context_and_its_answer_as_the_only_target(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.jsonl", {"steps": ["One.", "Two."], "query": "Sum?", "answer": "Three."})
    sample = opened(path, turns, random_steps=False).pool(0, 1)[0]
    assert texts(turns, sample) == ["<s>One.", "\nUser:Two.", "\nUser:Sum?\nAssistant:Three."]
    assert [taught(turns, step) for step in (*sample.steps, sample.query)] == ["", "", "Three.</s>"]


def test_text_becomes_chunks_in_which_every_token_has_the_next_as_target(tmp_path: Path, turns: Turns) -> None:
    text = " ".join(f"Word {i} stands here." for i in range(30))
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    sample = opened(path, turns, chunk_tokens=16, random_steps=False, max_steps=50).pool(0, 1)[0]
    steps = [*sample.steps, sample.query]
    ids = [token for step in steps for token in step.ids]
    bos = turns.tokenizer.bos_token_id
    assert ids == [bos, *turns.tokenizer.encode(text, add_special_tokens=False)]  # BOS at the start alone
    assert [len(step.ids) for step in steps[:-1]] == [17, *[16] * (len(steps) - 2)]
    assert 1 <= len(steps[-1].ids) <= 16
    for step in steps:
        assert [*step.targets] == [*step.ids[1:], IGNORE]


def test_a_system_message_is_the_head_of_its_conversation(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.jsonl", messages("Hi.", "Hello.", "Bye.", "See you.", system="Be kind. "))
    sample = opened(path, turns, random_steps=False).pool(0, 1)[0]
    assert turns.tokenizer.decode(sample.head) == "<s>Be kind. "
    assert texts(turns, sample) == ["\nUser:Hi.\nAssistant:Hello.", "\nUser:Bye.\nAssistant:See you."]
    chat_turns = _chat_turns()
    templated = opened(path, chat_turns, random_steps=False).pool(0, 1)[0]
    assert chat_turns.tokenizer.decode(templated.head) == "<system>Be kind. <end>"
    assert texts(chat_turns, templated)[0].startswith("<user>Hi.")


def _chat_turns() -> Turns:
    tokenizer = load_tokenizer(WEIGHTS / "base")
    tokenizer.chat_template = TEMPLATE
    return make_turns(tokenizer, TurnFormat("chat"))


def test_under_a_chat_template_a_step_without_a_reply_is_a_message(tmp_path: Path) -> None:
    turns = _chat_turns()
    path = write(tmp_path / "a.jsonl", {"steps": ["One.", "Two."], "query": "Sum?", "answer": "Three."})
    sample = opened(path, turns, random_steps=False).pool(0, 1)[0]
    assert texts(turns, sample) == ["<user>One.", "<end><user>Two.", "<end><user>Sum?<end><assistant>Three."]
    assert not any(step.targets for step in sample.steps)


# Files ---------------------------------------------------------------------------------------------------------------


LAYOUTS = {
    "a.jsonl": "\n".join,
    "a.json": "\n".join,
    "a list.json": lambda lines: f"[{','.join(lines)}]",
    "a.list.jsonl": lambda lines: json.dumps([json.loads(line) for line in lines], indent=2),
    "indented.json": lambda lines: "\n".join(json.dumps(json.loads(line), indent=2) for line in lines),
}


@pytest.mark.parametrize("name", [*LAYOUTS, "a.parquet"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_is_read_alone_and_within_a_folder_whatever_its_layout(
    tmp_path: Path, turns: Turns, name: str, packed: bool
) -> None:
    rows = [chat(0, 2), {"steps": ["One."], "query": "Sum?", "answer": "Three."}]
    deep = tmp_path / "deep"
    deep.mkdir()
    if name == "a.parquet":
        columns = {key: [row.get(key) for row in rows] for key in rows[0] | rows[1]}
        pyarrow.parquet.write_table(pyarrow.table(columns), deep / "A.PARQUET")
    else:
        data = b"\xef\xbb\xbf" + LAYOUTS[name]([json.dumps(row) for row in rows]).encode()
        path = deep / (name + ".gz" * packed).upper()
        path.write_bytes(gzip.compress(data) if packed else data)
    (file,) = deep.iterdir()
    for path in (file, tmp_path):
        found = [*chain.from_iterable(read_examples(path, DataSettings(), turns))]
        assert found == [
            Chat((("Ask 0 0.", "Say 0 0."), ("Ask 0 1.", "Say 0 1."))),
            TaskExample(("One.",), "Sum?", "Three."),
        ]


def test_a_fault_of_a_list_or_a_table_is_named_by_its_item_or_row(tmp_path: Path, turns: Turns) -> None:
    rows = [chat(0, 2), {"messages": messages("Hi.", "Hello.", "Bye.")["messages"]}]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    said = refusal(tmp_path, turns)
    assert "  a.json, item 2: the last message is the user's" in said
    assert "  b.parquet, row 2: the last message is the user's" in said


def test_parquet_wants_pyarrow(tmp_path: Path, turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="needs pyarrow, .* Or give JSON lines"):
        opened(tmp_path, turns)


def test_a_folder_is_read_whole_in_any_form(tmp_path: Path, turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jsonl", chat(0, 2), "", "   ", {"steps": ["One."], "query": "Sum?", "answer": "Three."})
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "b.json", chat(1, 2))
    (tmp_path / "c.txt").write_text("So it goes on. " * 20, encoding="utf-8")
    (tmp_path / "notes.md").write_text("not data", encoding="utf-8")
    for _ in range(2):
        examples = [*chain.from_iterable(read_examples(tmp_path, DataSettings(chunk_tokens=16), turns))]
        assert [type(example).__name__ for example in examples] == ["Chat", "TaskExample", "Text", "Chat"]
    (told,) = caplog.messages
    assert told.startswith(f"{tmp_path}: not read are ['notes.md'];")


def test_keys_that_are_not_used_are_told_once_a_file(
    tmp_path: Path, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", *({**chat(i, 2), "id": i, "source": "web"} for i in range(3)))
    for _ in range(2):
        assert len(read_examples(path, DataSettings(), turns)) == 3
    assert caplog.messages == [f"{path}: not used are id, source."]


def test_conversations_of_one_turn_are_left_out_with_their_number_if_there_are_others(
    tmp_path: Path, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    short = messages("Hi.", "Hello.")
    path = write(tmp_path / "mine.jsonl", short, chat(0, 2), short, chat(1, 2))
    assert len(opened(path, turns).examples) == 2
    assert f"{path}: 2 of 4 conversations are left out: one turn has nothing to remember." in caplog.messages
    said = refusal(write(tmp_path / "all.jsonl", short, short), turns)
    assert said.count("1 turn (a user's message and its reply); at least two are needed") == 1


def test_steps_before_the_latest_are_told(tmp_path: Path, turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"steps": ["a"] * count, "query": "Sum?", "answer": "Three."} for count in (2, 3, 4)]
    path = write(tmp_path / "a.jsonl", *rows)
    read_examples(path, DataSettings(max_steps=2), turns)
    assert caplog.messages == [f"{path}: 2 tasks have more than 2 steps (data.max_steps); the latest are read."]


@pytest.mark.parametrize(
    "template", [None, CHATML, THINKING, OPEN_THOUGHT], ids=["separators", "plain", "past", "open"]
)
@given(thinks=st.lists(st.booleans(), min_size=2, max_size=5))
def test_thoughts_that_the_template_does_not_show_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, template: str | None, thinks: list[bool]
) -> None:
    turns = make_turns(tokenizer(template), TurnFormat(template="chat" if template else "separators"))
    said = [text for i, think in enumerate(thinks) for text in (f"Ask {i}.", f"{'Hm.</think>' * think} Say {i}.")]
    path = write(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", messages(*said), messages("a", "b", "c", "d"))
    caplog.clear()
    ((chat,), _) = read_examples(path, DataSettings(), turns)
    left_out = sum(thinks) * (template in (THINKING, OPEN_THOUGHT))
    why = "hold text that the chat template does not show, such as a thought; it is left out."
    assert caplog.messages == ([f"{path}: {left_out} of {len(thinks) + 2} replies {why}"] if left_out else [])
    sample = chat.sample(turns, chat.length)
    learned = "".join(taught(turns, step) for step in (*sample.steps, sample.query))
    assert learned.count("Hm.") == sum(thinks) - left_out


@pytest.mark.parametrize(
    "line", [messages("a", "b", "c", "Hm.</think>"), task("Hm.</think>"), task("b", "Hm.</think>")]
)
def test_a_reply_of_which_the_template_shows_nothing_is_a_fault_of_its_line(tmp_path: Path, line: Any) -> None:
    turns = make_turns(tokenizer(THINKING), TurnFormat(template="chat"))
    said = refusal(write(tmp_path / "a.jsonl", chat(0, 2), line), turns)
    assert "a.jsonl, line 2, the reply that begins 'Hm.</think>': the chat template shows nothing of it" in said


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path, turns: Turns) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (json.dumps(chat(0, 2)) + "\r\n\r\n" + json.dumps(chat(1, 2))).encode())
    assert [e.turns[0][0] for (e,) in read_examples(path, DataSettings(), turns)] == ["Ask 0 0.", "Ask 1 0."]


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_only_a_newline_ends_a_line(tmp_path: Path, turns: Turns, mark: str) -> None:
    line = json.dumps(messages(f"One{mark}two.", "Yes.", "Bye.", "See you."), ensure_ascii=False)
    assert len(read_examples(write(tmp_path / "a.jsonl", line), DataSettings(), turns)) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path, turns: Turns, name: str) -> None:
    (tmp_path / name).write_bytes("Größe".encode("latin-1"))
    assert f"{name} is not UTF-8 text (line 1, byte 3); save it as UTF-8" in refusal(tmp_path / name, turns)


@pytest.mark.parametrize("lines", [[], ["", "  "]])
def test_an_empty_file_is_refused(tmp_path: Path, turns: Turns, lines: Sequence[str]) -> None:
    assert "holds no example" in refusal(write(tmp_path / "a.jsonl", *lines), turns)


def test_an_empty_text_is_refused(tmp_path: Path, turns: Turns) -> None:
    assert "a.txt: 0 tokens; at least 2 chunks of 128 tokens" in refusal(write(tmp_path / "a.txt"), turns)


def test_an_empty_folder_and_an_absent_file_are_refused(tmp_path: Path, turns: Turns) -> None:
    assert "holds none of *.parquet, *.jsonl, *.json, *.jsonl.gz, *.json.gz, *.txt, *.txt.gz." in refusal(
        tmp_path, turns
    )
    assert "There is no file or folder" in refusal(tmp_path / "nothing.jsonl", turns)


def test_no_path_and_options_are_refused(tmp_path: Path, turns: Turns) -> None:
    with pytest.raises(ConfigError, match=r"needs your own file or folder; name it as data.path"):
        open_data(DataSettings(), turns, 0)
    with pytest.raises(ConfigError, match="has no options; data.options is {'long': 1}"):
        opened(write(tmp_path / "a.jsonl", chat(0, 2)), turns, options={"long": 1})


def test_an_unknown_data_set_is_refused_with_the_likeliest(turns: Turns) -> None:
    with pytest.raises(ConfigError, match=r"no data set 'custum'. Did you mean custom\? There are: custom, builtin"):
        open_data(DataSettings("custum"), turns, 0)


# Faults --------------------------------------------------------------------------------------------------------------

FAULTS: list[tuple[Any, str, str]] = [
    ("{oops", "", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ('{"a": [1', "", "not JSON: Expecting ',' delimiter at line 4, column 1"),
    (json.dumps(chat(2, 2)) + " x", "", "not JSON: Expecting value at column "),
    ('{"a": 1, "a": 2}', "", "not readable as JSON: the key 'a' stands in one object twice"),
    ("[1]", "", "a list; every example is an object in braces"),
    (
        {"broken": 1},
        "",
        "has the keys ['broken']; give 'messages', or 'conversations', or 'prompt' with 'completion', or",
    ),
    (messages("Hi.", "Hello.", "Bye.", ""), ", message 4", "the content is ''; it must be some text"),
    (
        messages("Hi.", "Hello.", "word " * 600, "Yes."),
        ", the step of 1214 tokens that begins 'User:word word word word word word word ",
        "a step may have 512 tokens at most; shorten it, or raise data.max_step_tokens",
    ),
]
UNREADABLE = ["[" * 100_000, '{"messages": ' + "1" * 5000 + "}"]


@pytest.mark.parametrize(("line", "at", "reason"), FAULTS)
def test_a_malformed_line_is_refused_by_file_line_and_reason(
    tmp_path: Path, turns: Turns, line: Any, at: str, reason: str
) -> None:
    said = refusal(write(tmp_path / "mine.jsonl", chat(0, 2), "", line, chat(1, 2), "null"), turns)
    (first, *others) = [part for part in said.splitlines() if part.startswith("  mine.jsonl")]
    assert first.startswith(f"  mine.jsonl, line 3{at}")
    assert reason in first
    assert len(others) == 1


@pytest.mark.parametrize("line", UNREADABLE, ids=["nested", "digits"])
def test_json_beyond_what_python_reads_is_a_fault_of_its_line(tmp_path: Path, turns: Turns, line: str) -> None:
    path = write(tmp_path / "a.jsonl", chat(0, 2))
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    assert "a.jsonl, line 2: not readable as JSON" in refusal(path, turns)


def test_chunks_obey_the_longest_step(tmp_path: Path, turns: Turns) -> None:
    (tmp_path / "a.txt").write_text("word " * 200, encoding="utf-8")
    with pytest.raises(ConfigError, match="data.chunk_tokens is 33, data.max_step_tokens 32"):
        opened(tmp_path, turns, chunk_tokens=33, max_step_tokens=32)
    assert opened(tmp_path, turns, chunk_tokens=32, max_step_tokens=32).examples


def test_a_step_that_is_too_long_is_counted(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.jsonl", messages("Hi.", "Hello.", "one two three four five six", "Yes."))
    steps = read_examples(path, DataSettings(), turns)[0][0].sample(turns, 1)
    count = len(steps.query.ids)
    said = refusal(path, turns, max_step_tokens=count - 1)
    assert f"line 1, the step of {count} tokens that begins 'User:one two three four five six" in said
    assert len(opened(path, turns, max_step_tokens=count).examples) == 1


def test_all_faults_are_reported_at_once(tmp_path: Path, turns: Turns) -> None:
    lines = [json.dumps({f"key {number}": 1}) for number in range(9)]
    said = refusal(write(tmp_path / "a.jsonl", chat(0, 2), *lines), turns)
    assert [f"a.jsonl, line {number}: " in said for number in range(2, 11)] == [True] * 9
    assert "The first" not in said


def test_the_same_fault_is_reported_once_a_file_however_many_lines_have_it(tmp_path: Path, turns: Turns) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, chat(0, 2), *[messages("Hi.", "Hello.", "Bye.")] * 1500, "{")
    said = refusal(tmp_path, turns)
    for name in ("a.jsonl", "b.jsonl"):
        assert f"  {name}, line 2 (and 1,499 more): the last message is the user's" in said
        assert f"  {name}, line 1502: not JSON" in said
    assert len(said.splitlines()) == 5


def test_no_more_than_ten_faults_are_reported(tmp_path: Path, turns: Turns) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, *({f"key {number}": 1} for number in range(8)))
    said = refusal(tmp_path, turns)
    assert said.count("has the keys") == 10
    assert "The first 10 faults, there may be more:" in said


# Samples -------------------------------------------------------------------------------------------------------------


def test_a_long_task_keeps_its_latest_steps(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.jsonl", {"steps": [f"Step {i}." for i in range(6)], "query": "Sum?", "answer": "Three."})
    data = opened(path, turns, max_steps=2, random_steps=False)
    assert texts(turns, data.pool(0, 1)[0])[:2] == ["<s>Step 4.", "\nUser:Step 5."]


@pytest.mark.parametrize("most", range(1, 8))
def test_a_long_text_is_cut_into_stretches_that_each_begin_with_bos(tmp_path: Path, turns: Turns, most: int) -> None:
    text = " ".join(f"Word {i} stands here." for i in range(60))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    ids = turns.tokenizer.encode(text, add_special_tokens=False)
    examples = read_examples(tmp_path, DataSettings(chunk_tokens=10, max_steps=most), turns)
    bos, chunks = turns.tokenizer.bos_token_id, [ids[i : i + 10] for i in range(0, len(ids), 10)]
    seen = []
    for (example,) in examples:
        sample = example.sample(turns, example.length)
        read = [[*step.ids] for step in (*sample.steps, sample.query)]
        assert read[0][0] == bos
        assert 2 <= len(read) <= most + 1
        seen += [read[0][1:], *read[1:]]
    alone = len(chunks) % (most + 1) == 1  # the last chunk, which then takes the one before along
    assert seen == (chunks[:-1] + chunks[-2:] if alone else chunks)


def test_a_query_of_several_chunks_is_read_as_one_and_every_token_is_read(tmp_path: Path, turns: Turns) -> None:
    text = " ".join(f"Word {i} stands here." for i in range(60))
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    ids = turns.tokenizer.encode(text, add_special_tokens=False)
    settings = DataSettings(chunk_tokens=10, max_steps=3, query_chunks=2)
    seen: list[int] = []
    for (example,) in read_examples(tmp_path, settings, turns)[:-1]:
        sample = example.sample(turns, example.length)
        assert [len(step.ids) for step in sample.steps] == [11, 10, 10]
        assert [*sample.query.targets] == [*sample.query.ids[1:], IGNORE]
        seen += [i for step in (*sample.steps, sample.query) for i in step.ids][1:]
        first = example.sample(turns, 1)
        assert (len(first.steps), len(first.query.ids)) == (1, 20)
    assert seen == ids[: len(seen)]
    (last,) = read_examples(tmp_path, settings, turns)[-1]
    assert last.chunks[-1][-1] == ids[-1]
    assert last.length >= 1


@pytest.mark.parametrize(("size", "extra"), [(16, 1), (16, 2)])
def test_the_query_of_every_sample_of_a_text_has_a_target(tmp_path: Path, turns: Turns, size: int, extra: int) -> None:
    ids = turns.tokenizer.encode("word " * 200, add_special_tokens=False)
    text = turns.tokenizer.decode(ids[: 2 * size + extra])
    assert len(turns.tokenizer.encode(text, add_special_tokens=False)) == 2 * size + extra
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    for sample in opened(tmp_path, turns, chunk_tokens=size, random_steps=False).pool(0, 1):
        assert any(target != IGNORE for target in sample.query.targets)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "many.jsonl", *(chat(i, 2 + i % 4) for i in range(40)))


def names(turns: Turns, samples: Sequence[Sample]) -> list[str]:
    """Which conversation a sample is of."""
    return [texts(turns, sample)[0].split()[1] for sample in samples]


def test_an_epoch_holds_every_example_once(many: Path, turns: Turns) -> None:
    data = opened(many, turns, eval_samples=0)
    epochs = [names(turns, data.pool(index, 40)) for index in (0, 1)]
    for epoch in epochs:
        assert Counter(epoch) == Counter(str(i) for i in range(40))
    assert epochs[0] != epochs[1]
    assert [n for index in range(5) for n in names(turns, data.pool(index, 16))] == epochs[0] + epochs[1]


def test_a_pool_is_the_same_whatever_was_drawn_before(many: Path, turns: Turns) -> None:
    one, other = (opened(many, turns) for _ in range(2))
    later = [one.pool(index, 7) for index in range(12)][11]
    assert other.pool(11, 7) == later
    assert opened(many, turns, seed=1).pool(11, 7) != later


def test_held_out_examples_are_in_no_pool(many: Path, turns: Turns) -> None:
    data = opened(many, turns, eval_samples=64)
    held = set(names(turns, data.held_out()))
    assert len(held) == len(data.held_out()) == 4  # a tenth at most
    assert len(opened(many, turns, eval_samples=3).held_out()) == 3
    drawn = {name for index in range(6) for name in names(turns, data.pool(index, 12))}
    assert drawn == {str(i) for i in range(40)} - held


def test_a_file_of_another_kind_is_refused(tmp_path: Path, turns: Turns) -> None:
    path = tmp_path / "ids.csv"
    path.write_text('{"messages": []}\n')
    with pytest.raises(DataError, match=r"ids.csv is of an unknown kind; its name must end in one of .parquet, .jsonl"):
        opened(path, turns)


@pytest.mark.parametrize(("count", "asked", "held"), [(40, 64, 4), (40, 5, 4), (9, 1, 0), (40, 4, None), (9, 0, None)])
def test_fewer_held_out_than_asked_for_are_told_with_their_numbers(
    tmp_path: Path, turns: Turns, caplog: pytest.LogCaptureFixture, count: int, asked: int, held: int | None
) -> None:
    path = write(tmp_path / "a.jsonl", *(chat(i, 2) for i in range(count)))
    opened(path, turns, eval_samples=asked)
    told = (
        f"custom: {held} of {asked} samples are held out to evaluate on (data.eval_samples): at most a tenth of {count}"
    )
    assert caplog.messages == (
        [] if held is None else [f"{told}, conversations whole. The training itself needs none."]
    )


def test_all_of_a_conversation_is_held_out_or_none(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.jsonl", *(chat(i, 9 if i % 2 else 2) for i in range(20)))  # stretches: 5 of 2, or one
    data = opened(path, turns, max_steps=1, eval_samples=64)
    held, trained = ({e.turns[0][0].split()[1] for e in examples} for examples in (data.held, data.examples))
    assert held
    assert not held & trained
    assert 0 < len(data.held) <= 0.1 * (len(data.held) + len(data.examples))


def test_nothing_is_held_out_where_others_are_given_to_evaluate_on(tmp_path: Path, many: Path, turns: Turns) -> None:
    other = write(tmp_path / "eval.jsonl", *(chat(i, 3) for i in range(50, 55)))
    data = opened(many, turns, eval_path=str(other))
    assert names(turns, data.held_out()) == ["50", "51", "52", "53", "54"]
    assert len({name for index in range(4) for name in names(turns, data.pool(index, 10))}) == 40


def test_samples_have_a_random_number_of_steps_within_their_conversation(many: Path, turns: Turns) -> None:
    data = opened(many, turns, eval_samples=0)
    counts: dict[str, set[int]] = {}
    for index in range(30):
        samples = data.pool(index, 40)
        for name, sample in zip(names(turns, samples), samples, strict=True):
            counts.setdefault(name, set()).add(len(sample.steps))
    assert counts == {str(i): set(range(1, 2 + i % 4)) for i in range(40)}


def test_without_random_steps_samples_are_whole(many: Path, turns: Turns) -> None:
    samples = opened(many, turns, eval_samples=0, random_steps=False).pool(0, 40)
    assert {int(n): len(s.steps) for n, s in zip(names(turns, samples), samples, strict=True)} == {
        i: 1 + i % 4 for i in range(40)
    }


def test_the_longest_sample_is_known(many: Path, turns: Turns) -> None:
    data = opened(many, turns, random_steps=False)
    lengths = [length(sample) for sample in [*data.pool(0, 36), *data.held_out()]]
    assert data.longest == max(lengths)


def task_of(path: Path, turns: Turns, **options: Any) -> CustomTask:
    task = open_task(TaskSettings("custom", str(path), options), turns)
    assert isinstance(task, CustomTask)
    return task


def test_a_conversation_is_measured_at_its_last_reply_after_the_latest_turns(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.jsonl", chat(0, 6), chat(1, 2))
    task = task_of(path, turns)
    assert (task.depths, task.measures) == ([1, 2, 4], "perplexity")
    one, other = task.questions(4)
    assert [len(one.steps), len(other.steps)] == [4, 1]
    assert task.noted == {"fewer than 4 steps, there are no more": 1}
    whole = read_examples(path, DataSettings(), turns)[0][0]
    reply = turns.encode_reply(whole.turns[-1][1])
    assert [one.answers, next(task.questions(0)).answers] == [[reply], [reply]]
    assert turns.decode([*one.steps[0]]).startswith(whole.turns[1][0].split()[0])
    assert [one.alone().query, other.alone().query] == [question.query for question in task.questions(0)]


def test_stretches_of_one_conversation_have_one_source(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.jsonl", chat(0, 9), chat(1, 2), chat(2, 9))
    sources = [question.source for question in task_of(path, turns, max_steps=3).questions(1)]
    assert sources == [*"000", "1", *"222"]


def test_choices_are_the_answers_of_a_task(tmp_path: Path, turns: Turns) -> None:
    line = {"steps": ["It is red.", "It is big."], "query": "What colour?", "answer": "red", "choices": ["blue", "red"]}
    task = task_of(write(tmp_path / "a.jsonl", line), turns)
    (question,) = task.questions(2)
    assert task.measures == "acc_norm"
    assert [turns.decode([*answer]) for answer in question.answers] == ["blue", "red"]
    assert (question.right, len(question.steps), question.before) == (1, 2, question.query[-1:])
    (none,) = task.questions(0)
    assert question.alone().query == none.query
    assert (none.steps, question.alone().steps, question.alone().answers) == ([], [], question.answers)


def test_an_answer_that_is_no_choice_is_a_fault_of_its_line(tmp_path: Path, turns: Turns) -> None:
    line = {"steps": ["It is red."], "query": "What colour?", "answer": "green", "choices": ["blue", "red"]}
    said = refusal(write(tmp_path / "a.jsonl", line), turns)
    assert "line 1: the answer 'green' is none of the choices ['blue', 'red']" in said


def test_choices_for_some_examples_only_are_refused(tmp_path: Path, turns: Turns) -> None:
    line = {"steps": ["It is red."], "query": "What colour?", "answer": "red", "choices": ["blue", "red"]}
    path = write(tmp_path / "a.jsonl", line, chat(0, 2))
    with pytest.raises(DataError, match="1 of 2 examples have choices"):
        task_of(path, turns)


def test_a_text_is_measured_at_its_last_chunk(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path / "a.txt", "One two three four five six seven eight nine ten. " * 12)
    task = task_of(path, turns, chunk_tokens=10, max_steps=4)
    for depth in (1, 4):
        questions = [*task.questions(depth)]
        assert {len(question.steps) for question in questions} <= {1, 2, 3, 4}
        assert all(len(question.query) == 1 for question in questions)
        assert all([*q.alone().query] == [turns.tokenizer.bos_token_id, *q.query] for q in questions)


def test_errors_of_an_evaluation_name_the_options_of_its_task(tmp_path: Path, turns: Turns) -> None:
    row = {"steps": ["one two three four five"], "query": "What?", "answer": "Five."}
    path = write(tmp_path / "mine.jsonl", row)
    with pytest.raises(DataError, match="shorten it, or raise task.options.max_step_tokens"):
        task_of(path, turns, max_step_tokens=2)
    (tmp_path / "text.txt").write_text("one")
    with pytest.raises(DataError, match=r"are needed \(task.options.chunk_tokens\)"):
        task_of(tmp_path / "text.txt", turns, chunk_tokens=50)
    with pytest.raises(ConfigError, match="task.options.chunk_tokens is 9, task.options.max_step_tokens 8; lower"):
        task_of(tmp_path / "text.txt", turns, chunk_tokens=9, max_step_tokens=8)
    with pytest.raises(ConfigError, match="task.options.max_steps is 0; it must be at least 1"):
        task_of(path, turns, max_steps=0)


def test_without_context_a_chat_keeps_its_system_message(tmp_path: Path, turns: Turns) -> None:
    talk = [
        ("system", "Be brief."),
        ("user", "I am Anna."),
        ("assistant", "Hi!"),
        ("user", "Who?"),
        ("assistant", "Anna."),
    ]
    rows = {"messages": [{"role": role, "content": content} for role, content in talk]}
    (question,) = task_of(write(tmp_path / "mine.jsonl", rows), turns).questions(1)
    alone = question.alone()
    assert turns.tokenizer.decode([*alone.head, *alone.query]) == "<s>Be brief.\nUser:Who?\nAssistant:"


def test_conversations_of_ordinary_text_are_not_laid_out_to_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_turns(tokenizer(CHATML), TurnFormat("chat"))
    talk = [{"role": role, "content": text} for _ in range(3) for role, text in (("user", "hi"), ("assistant", "yes"))]
    odd = [*talk[:-1], {"role": "assistant", "content": "see <|im_end|>"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in (talk, talk, odd)))
    laid_out: list[object] = []
    sample = Chat.sample
    monkeypatch.setattr(Chat, "sample", lambda self, *given: laid_out.append(self) or sample(self, *given))
    read_examples(tmp_path, DataSettings(), made)
    assert len(laid_out) == 1
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}))
    read_examples(tmp_path, DataSettings(max_step_tokens=made.around + 4), made)  # of which it might have more
    assert len(laid_out) == 2
