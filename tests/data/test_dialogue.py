"""DailyDialog and SODA: the authors' rules of text, filters and layout, on small files in the publisher's format."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data import dailydialog, open_data, soda
from ccm.data.dialogue import Corpus, Dialogue, DialogueTask, DialogueTaskOptions
from ccm.data.examples import Examples
from ccm.data.tasks import TaskSettings, open_task
from ccm.engine.layout import IGNORE, Sample
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer
from ccm.training.recipe import Recipe, load_recipe

TALK = [
    "Say , Jim , how about a tea ? __eou__ Sure ! __eou__ It ’ s 3.5 dollars . __eou__ I ' m in . __eou__",
    "Hello . __eou__ Hi there ! __eou__ Bye , then . __eou__",
    "Too short . __eou__ Indeed . __eou__",
]
LEAK = "The same . __eou__ As in the test . __eou__ Word for word . __eou__"


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat(separator="\nA:", reply_separator="\nA:"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, lines in (("train", [*TALK, LEAK]), ("validation", TALK[:1]), ("test", [LEAK])):
        (tmp_path / f"dialogues_{split}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return tmp_path


def opened(folder: Path, turns: Turns, **changes: Any) -> Examples:
    given = {"data.path": str(folder), **changes}
    data = open_data(load_recipe("dialog", [f"{key}={value}" for key, value in given.items()]).data, turns, 0)
    assert isinstance(data, Examples)
    return data


@pytest.mark.parametrize(
    ("text", "daily", "plain"),
    [
        ("Hello , how are you ?", "Hello, how are you?", "Hello, how are you?"),
        ("I ' m fine ; really !", "I'm fine; really!", "I ' m fine; really!"),
        ("It costs 3.5 dollars.", "It costs 3. 5 dollars.", "It costs 3.5 dollars."),
        ("Well ... no\u3002", "Well. . . no.", "Well... no."),
        ("  It\u2019s so .  ", "It's so.", "It's so."),
        ("", "", ""),
    ],
)
def test_texts_are_tidied_as_the_corpus_wants(text: str, daily: str, plain: str) -> None:
    assert (dailydialog.tidy(text), soda.tidy(text)) == (daily, plain)


def words(count: int) -> str:
    """Text of so many tokens: a digit is one."""
    return "7" * count


@pytest.mark.parametrize(
    ("lengths", "corpus", "longest", "kept"),
    [
        ((5, 5), dailydialog.CORPUS, 400, False),
        ((5, 5, 5), dailydialog.CORPUS, 400, True),
        ((128, 3, 3), dailydialog.CORPUS, 400, True),
        ((129, 3, 3), dailydialog.CORPUS, 400, False),
        ((100, 100, 100, 100), dailydialog.CORPUS, 400, True),
        ((100, 100, 100, 101), dailydialog.CORPUS, 400, False),
        ((100, 100, 100, 101), dailydialog.CORPUS, 600, True),
        ((4, 0, 4), dailydialog.CORPUS, 400, True),
        ((4, 0, 4), soda.CORPUS, 512, False),
    ],
)
def test_a_dialogue_is_kept_by_its_turns_and_tokens(
    turns: Turns, lengths: tuple[int, ...], corpus: Corpus, longest: int, kept: bool
) -> None:
    dialogue = Dialogue(tuple(map(words, lengths)))
    counted = [len(turns.tokenizer.encode(text, add_special_tokens=False)) for text in dialogue.turns]
    assert counted == [*lengths]
    assert ([*corpus.keep([dialogue], turns, longest)] == [dialogue]) is kept


def shown(turns: Turns, sample: Sample) -> list[str]:
    return [turns.tokenizer.decode(step.ids) for step in (*sample.steps, sample.query)]


def test_a_sample_is_the_beginning_with_its_last_turn_as_the_target(turns: Turns) -> None:
    dialogue = Dialogue(("One.", "Two.", "Three.", "Four."))
    assert dialogue.length == 2
    sample = dialogue.sample(turns, 2)
    assert shown(turns, sample) == ["<s>One.", "\nA:Two.", "\nA:Three.\nA:Four."]
    learned = [target for target in sample.query.targets if target != IGNORE]
    assert turns.tokenizer.decode(learned) == "Four.</s>"
    told = [[target for target in step.targets if target != IGNORE] for step in sample.steps]
    assert [turns.tokenizer.decode(ids) for ids in told] == ["One.", "Two."]
    for step, targets in zip(sample.steps, told, strict=True):
        assert [*step.ids[-len(targets) :]] == targets
        assert [*step.targets[-len(targets) - 1 :]] == [*targets, IGNORE]
    assert shown(turns, dialogue.sample(turns, 1)) == ["<s>One.", "\nA:Two.\nA:Three."]


def test_the_splits_are_read_as_they_are_or_gzipped(folder: Path) -> None:
    plain = [*dailydialog.read(folder, "train")]
    assert [len(dialogue.turns) for dialogue in plain] == [4, 3, 2, 3]
    assert plain[0].turns[2:] == ("It's 3. 5 dollars.", "I'm in.")
    path = folder / "dialogues_train.txt"
    path.with_name("dialogues_train.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert [*dailydialog.read(folder, "train")] == plain


def test_what_is_evaluated_on_is_not_trained_on(folder: Path, turns: Turns) -> None:
    data = opened(folder, turns)
    assert [example.turns[0] for example in data.examples] == ["Hello."]
    assert [shown(turns, sample)[0] for sample in data.held_out()] == ["<s>Say, Jim, how about a tea?"]
    assert len(opened(folder, turns, **{"data.options.drop_leaks": "false"}).examples) == 3


def test_what_a_training_leaves_out_and_lacks_is_told(
    folder: Path, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    opened(folder, turns)
    assert caplog.messages == [
        "DailyDialog: examples left out, they are evaluated on, too: 2",
        "DailyDialog: examples left out, too few turns, or too few or many tokens: 1",
        "dailydialog: 1 of 64 samples are held out to evaluate on (data.eval_samples): the validation split has no "
        "more that can be used. The training itself needs none.",
    ]
    caplog.clear()
    opened(folder, turns, **{"data.options.most": 1, "data.options.drop_leaks": "false", "data.eval_samples": 1})
    assert not caplog.messages


def test_a_recipe_with_the_authors_settings() -> None:
    recipe = load_recipe("dialog")
    assert isinstance(recipe, Recipe)
    assert (recipe.max_steps, recipe.batch_size, recipe.lr, recipe.adapter.lora.r) == (1000, 128, 3e-4, 8)
    assert (recipe.adapter.rule, recipe.adapter.n_tok, dict(recipe.objective)) == ("concat", 2, {"last": 1.0})
    other = load_recipe("soda")
    assert (other.max_steps, other.adapter.lora.r, other.adapter.n_tok) == (8000, 16, 2)


def test_a_file_without_a_dialogue_to_train_on_is_refused(folder: Path, turns: Turns) -> None:
    (folder / "dialogues_train.txt").write_text(TALK[2] + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"No dialogue to train on in .* can be used"):
        opened(folder, turns)


def test_absent_and_damaged_files_are_named(folder: Path, turns: Turns) -> None:
    with pytest.raises(ConfigError, match="needs the folder that holds dialogues_train.txt,"):
        open_data(load_recipe("dialog").data, turns, 0)
    path = folder / "dialogues_test.txt"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    with pytest.raises(DataError, match="holds no dialogues_test.txt, as it is or gzipped"):
        opened(folder, turns)
    path.with_name("dialogues_test.txt.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="cannot be read: .* it may not be whole"):
        opened(folder, turns)
    path.with_name("dialogues_test.txt.gz").unlink()
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        opened(folder, turns)


SODA = [["Hi .", "Hello !", "Bye , then .", "Bye ."], ["", "Empty turns are dropped.", "Indeed."], ["One.", "Two."]]


def write_soda(folder: Path, split: str, *, parquet: bool) -> None:
    if parquet:
        pyarrow.parquet.write_table(
            pyarrow.table({"dialogue": SODA, "head": ["x"] * len(SODA)}), folder / f"{split}.parquet"
        )
    else:
        rows = [json.dumps({"dialogue": dialogue}) for dialogue in SODA]
        (folder / f"{split}.jsonl").write_text("".join(row + "\n" for row in rows))


@pytest.mark.parametrize(("protocol", "ends"), [("paper", (3, 6, 15)), ("fixed-target", (15, 15, 15))])
def test_a_protocol_says_which_turns_are_in_view(
    folder: Path, turns: Turns, protocol: str, ends: tuple[int, ...]
) -> None:
    line = " ".join(f"{i} . __eou__" for i in range(17))
    for split in ("validation", "test"):
        (folder / f"dialogues_{split}.txt").write_text(line + "\n")
    task = open_task(TaskSettings("dialog", str(folder), {"protocol": protocol}), turns)
    for depth, context, end in zip((1, 4, 12), (1, 4, 13), ends, strict=True):
        for question in task.questions(depth):
            said = [turns.decode([*ids]).removeprefix("A:") for ids in question.steps]
            assert said == [f"{i}." for i in range(end - 2 - context, end - 2)]
            assert turns.decode([*question.alone().query]).startswith(f"{end - 2}.")
            assert turns.decode([*question.answers[0]]) == f"{end - 1}."


@pytest.mark.parametrize("parquet", [True, False])
def test_soda_is_read_from_parquet_or_json_lines(tmp_path: Path, turns: Turns, parquet: bool) -> None:
    for split in ("train", "valid"):
        write_soda(tmp_path, split, parquet=parquet)
    recipe = load_recipe("soda", [f"data.path={tmp_path}", "data.options.drop_leaks=false"])
    data = open_data(recipe.data, turns, recipe.seed)
    assert [example.turns for example in data.examples] == [("Hi.", "Hello!", "Bye, then.", "Bye.")]
    task = open_task(TaskSettings("soda", str(tmp_path)), turns)
    (question,) = task.questions(1)
    assert turns.decode([*question.answers[0]]) == "Bye, then."
    assert question.alone().query == turns.prompt("Hello!", first=True)
    assert task.skipped == {"filtered": 2, "fewer than 3 turns": 0}


def test_only_the_first_of_soda_are_measured(tmp_path: Path, turns: Turns) -> None:
    lines = [json.dumps({"dialogue": [f"{i}.", "a.", "b."]}) for i in range(9)]
    (tmp_path / "valid.jsonl").write_text("\n".join(lines))
    task = DialogueTask(replace(soda.CORPUS, most=4), tmp_path, turns, DialogueTaskOptions())
    assert [turns.decode([*question.steps[0]]) for question in task.questions(1)] == ["0.", "1.", "2.", "3."]


def test_absent_and_damaged_files_of_soda_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of valid.parquet, valid.jsonl, validation.parquet"):
        [*soda.read(tmp_path, "validation")]
    write_soda(tmp_path, "test", parquet=True)
    path = tmp_path / "test.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read: .*may not be whole"):
        [*soda.read(tmp_path, "test")]
    (tmp_path / "train.jsonl").write_text('{"dialogue": ["a", 3]}\n')
    with pytest.raises(DataError, match="row 1: 'dialogue' must be a list of texts"):
        [*soda.read(tmp_path, "train")]
    (tmp_path / "train.jsonl").write_text('{"dialogue": ["a"]}\n{"dialog')
    with pytest.raises(DataError, match="line 2: no object with 'dialogue'"):
        [*soda.read(tmp_path, "train")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no dialogue"),
        (
            "Hi . __eou__ Hello . __eou__\nHi . __eou__ Hel",
            "line 2 does not end in __eou__, as every turn does: it ends 'Hel'",
        ),
        ("something else\n", "line 1 does not end in __eou__"),
    ],
)
def test_a_file_of_dailydialog_that_is_cut_off_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "dialogues_test.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        [*dailydialog.read(tmp_path, "test")]


def test_adapters_with_a_chat_template_read_dialogues(folder: Path) -> None:
    tokenizer = load_tokenizer(WEIGHTS / "base")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    turns = make_turns(tokenizer, TurnFormat(template="chat"))
    question, _ = open_task(TaskSettings("dialog", str(folder)), turns).questions(1)
    said = [tokenizer.decode([*ids]) for ids in (*question.steps, question.query, *question.answers)]
    assert said == ["<user>Say, Jim, how about a tea?", "<end><user>Sure!<end><assistant>", "It's 3. 5 dollars."]
    sample = opened(folder, turns, **{"data.random_steps": "false"}).pool(0, 1)[0]
    learned = [[target for target in step.targets if target != IGNORE] for step in sample.steps]
    assert [tokenizer.decode(ids) for ids in learned][:1] in (["Say, Jim, how about a tea?"], ["Hello."])
