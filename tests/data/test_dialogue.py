"""DailyDialog and SODA: the authors' rules of text, filters and layout, on small files in the publisher's format."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from ccm.builtin import WEIGHTS
from ccm.config import TurnFormat
from ccm.data import open_data
from ccm.data.dialogue import DAILY, SODA, Corpus, Dialogue, keep, read_dialogues, tidy_daily, tidy_soda
from ccm.data.examples import Examples
from ccm.errors import ConfigError, DataError
from ccm.layout import IGNORE, Sample
from ccm.loading import load_tokenizer
from ccm.recipe import Recipe, load_recipe
from ccm.turns import Turns, make_turns

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
    data = open_data(load_recipe("dialog", [f"{key}={value}" for key, value in given.items()]), turns)
    assert isinstance(data, Examples)
    return data


@pytest.mark.parametrize(
    ("text", "daily", "soda"),
    [
        ("Hello , how are you ?", "Hello, how are you?", "Hello, how are you?"),
        ("I ' m fine ; really !", "I'm fine; really!", "I ' m fine; really!"),
        ("It costs 3.5 dollars.", "It costs 3. 5 dollars.", "It costs 3.5 dollars."),
        ("Well ... no\u3002", "Well. . . no.", "Well... no."),
        ("  It\u2019s so .  ", "It's so.", "It's so."),
        ("", "", ""),
    ],
)
def test_texts_are_tidied_as_the_corpus_wants(text: str, daily: str, soda: str) -> None:
    assert (tidy_daily(text), tidy_soda(text)) == (daily, soda)


def words(count: int) -> str:
    """Text of so many tokens: a digit is one."""
    return "7" * count


@pytest.mark.parametrize(
    ("lengths", "corpus", "longest", "kept"),
    [
        ((5, 5), DAILY, 400, False),
        ((5, 5, 5), DAILY, 400, True),
        ((128, 3, 3), DAILY, 400, True),
        ((129, 3, 3), DAILY, 400, False),
        ((100, 100, 100, 100), DAILY, 400, True),
        ((100, 100, 100, 101), DAILY, 400, False),
        ((100, 100, 100, 101), DAILY, 600, True),
        ((4, 0, 4), DAILY, 400, True),
        ((4, 0, 4), SODA, 512, False),
    ],
)
def test_a_dialogue_is_kept_by_its_turns_and_tokens(
    turns: Turns, lengths: tuple[int, ...], corpus: Corpus, longest: int, kept: bool
) -> None:
    dialogue = Dialogue(tuple(map(words, lengths)))
    counted = [len(turns.tokenizer.encode(text, add_special_tokens=False)) for text in dialogue.turns]
    assert counted == [*lengths]
    assert (keep([dialogue], turns, corpus, longest) == [dialogue]) is kept


def shown(turns: Turns, sample: Sample) -> list[str]:
    return [turns.tokenizer.decode(step.ids) for step in (*sample.steps, sample.query)]


def test_a_sample_is_the_beginning_with_its_last_turn_as_the_target(turns: Turns) -> None:
    dialogue = Dialogue(("One.", "Two.", "Three.", "Four."))
    assert dialogue.length == 2
    sample = dialogue.sample(turns, 2)
    assert shown(turns, sample) == ["<s>One.", "\nA:Two.", "\nA:Three.\nA:Four."]
    learned = [target for target in sample.query.targets if target != IGNORE]
    assert turns.tokenizer.decode(learned) == "Four.</s>"
    assert not any(step.targets for step in sample.steps)
    assert shown(turns, dialogue.sample(turns, 1)) == ["<s>One.", "\nA:Two.\nA:Three."]


def test_the_splits_are_read_as_they_are_or_gzipped(folder: Path) -> None:
    plain = [*read_dialogues(folder, "train", DAILY)]
    assert [len(dialogue.turns) for dialogue in plain] == [4, 3, 2, 3]
    assert plain[0].turns[2:] == ("It's 3. 5 dollars.", "I'm in.")
    path = folder / "dialogues_train.txt"
    path.with_name("dialogues_train.txt.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert [*read_dialogues(folder, "train", DAILY)] == plain


def test_what_is_evaluated_on_is_not_trained_on(folder: Path, turns: Turns) -> None:
    data = opened(folder, turns)
    assert [example.turns[0] for example in data.examples] == ["Hello."]
    assert [shown(turns, sample)[0] for sample in data.held_out()] == ["<s>Say, Jim, how about a tea?"]
    assert len(opened(folder, turns, **{"data.options.drop_leaks": "false"}).examples) == 3


def test_a_recipe_with_the_authors_settings() -> None:
    recipe = load_recipe("dialog")
    assert isinstance(recipe, Recipe)
    assert (recipe.max_steps, recipe.batch_size, recipe.lr, recipe.adapter.lora.r) == (1000, 128, 3e-4, 8)
    assert (recipe.adapter.rule, recipe.adapter.n_tok, dict(recipe.objective)) == ("concat", 2, {"last": 1.0})


def test_a_file_without_a_dialogue_to_train_on_is_refused(folder: Path, turns: Turns) -> None:
    (folder / "dialogues_train.txt").write_text(TALK[2] + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"No dialogue of .*dialogues_train.txt can be trained on"):
        opened(folder, turns)


def test_absent_and_damaged_files_are_named(folder: Path, turns: Turns) -> None:
    with pytest.raises(ConfigError, match="needs data.path, the folder that holds dialogues_train.txt"):
        open_data(load_recipe("dialog"), turns)
    path = folder / "dialogues_test.txt"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    with pytest.raises(DataError, match="holds no dialogues_test.txt, as it is or gzipped"):
        opened(folder, turns)
    path.with_name("dialogues_test.txt.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="cannot be read: .* it may not be whole"):
        opened(folder, turns)
    path.with_name("dialogues_test.txt.gz").unlink()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        opened(folder, turns)
