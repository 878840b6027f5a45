"""Mixtures: shares, epochs, turns of each part, and what is absent; the recipes that are made of them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccm import cli
from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data import DATA_SETS, open_data
from ccm.data.mixture import Mixture
from ccm.data.settings import DataSettings
from ccm.engine.layout import Sample, length
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer
from ccm.training.recipe import load_recipe


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


def jsonl(path: Path, *rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every part in its publisher's format: 30 dialogues of SODA, 10 tasks and 10 chats of one's own, a book, chats."""
    talk = [{"dialogue": [f"Soda {i} {turn}." for turn in range(5)]} for i in range(30)]
    jsonl(tmp_path / "soda" / "train.jsonl", *talk)
    jsonl(tmp_path / "soda" / "valid.jsonl", {"dialogue": ["Soda held 1.", "Two.", "Three."]})
    steps = [{"steps": [f"Task {i}.", f"Task {i} again."], "query": "What?", "answer": "That."} for i in range(10)]
    jsonl(tmp_path / "custom" / "tasks.jsonl", *steps)
    said = [{"role": ("user", "assistant")[i % 2], "content": f"Lmsys {i}."} for i in range(6)]
    jsonl(tmp_path / "lmsys" / "a.jsonl", *[{"conversation": said, "language": "English"}] * 3)
    page = {"raw_content": " ".join(f"Page {i}" for i in range(900))}
    jsonl(tmp_path / "redpajama" / "en_head.json", *[page] * 4)
    return tmp_path


def opened(folder: Path | None, turns: Turns, *parts: Any, seed: int = 0, **settings: Any) -> Mixture:
    path = None if folder is None else str(folder)
    short = {"eval_samples": 0, "options": {"parts": [*parts]}, **settings}
    data = open_data(DataSettings("mixture", path, **short), turns, seed)
    assert isinstance(data, Mixture)
    return data


def shown(turns: Turns, sample: Sample) -> str:
    return turns.tokenizer.decode([token for step in (*sample.steps, sample.query) for token in step.ids])


def kinds(turns: Turns, samples: list[Sample]) -> Counter[str]:
    """The first words of the samples."""
    return Counter(shown(turns, sample).removeprefix("<s>").split()[0] for sample in samples)


SODA, TASKS = {"name": "soda", "options": {"drop_leaks": False}}, {"name": "custom"}


def test_every_part_has_the_share_that_its_weight_says(folder: Path, turns: Turns) -> None:
    data = opened(folder, turns, {**SODA, "weight": 1}, {**TASKS, "weight": 3}, {"name": "lmsys", "weight": 4})
    drawn = kinds(turns, data.pool(0, 1000))
    assert drawn == {"Soda": 125, "Task": 375, "Lmsys": 500}
    begun = kinds(turns, data.pool(0, 100))
    assert len(begun) == 3
    assert abs(begun["Lmsys"] - 50) < 20


def test_without_weights_every_part_has_the_share_of_its_examples(folder: Path, turns: Turns) -> None:
    assert kinds(turns, opened(folder, turns, SODA, TASKS).pool(0, 1000)) == {"Soda": 750, "Task": 250}


def test_every_part_goes_through_its_own_epochs(folder: Path, turns: Turns) -> None:
    data = opened(folder, turns, {**SODA, "weight": 1}, {**TASKS, "weight": 1}, random_steps=False)
    for first in (0, 1500, 7_000_000):
        texts = Counter(shown(turns, data.pool(place, 1)[0]) for place in range(first // 500 * 500, first + 500))
        tasks = {text: count for text, count in texts.items() if "Task" in text}
        assert len(tasks) == 10
    whole = Counter(shown(turns, sample) for sample in data.pool(0, 3000))
    assert {whole[text] for text in whole if "Task" in text} == {150}
    assert {whole[text] for text in whole if "Soda" in text} == {50}


def test_samples_are_a_function_of_seed_and_place(folder: Path, turns: Turns) -> None:
    parts = ({**SODA, "weight": 1}, {"name": "redpajama", "weight": 1, "chunk_tokens": 16})
    data = opened(folder, turns, *parts)
    one = data.pool(2, 30)
    again = opened(folder, turns, *parts)
    assert [again.pool(place, 1)[0] for place in reversed(range(60, 90))][::-1] == one
    assert opened(folder, turns, *parts, seed=1).pool(2, 30) != one


def test_a_part_has_its_own_turns_and_lengths(folder: Path, turns: Turns) -> None:
    lines = {**SODA, "weight": 1, "turns": {"separator": "\nB:", "reply_separator": "\nC:"}, "random_steps": False}
    data = opened(folder, turns, lines, {"name": "lmsys", "weight": 1, "max_steps": 1}, max_steps=2)
    texts = [shown(turns, sample) for sample in data.pool(0, 40)]
    assert all(("\nC:" in text) == ("Soda" in text) for text in texts)
    assert all(("\nAssistant:" in text) == ("Lmsys" in text) for text in texts)
    assert {len(sample.steps) for sample in data.pool(0, 40) if "Lmsys" in shown(turns, sample)} == {1}
    assert data.deepest == 3  # of a dialogue of five turns
    assert data.longest == max(part.longest for part in data.parts) >= max(map(length, data.pool(0, 40)))


def test_all_parts_hold_samples_out(folder: Path, turns: Turns) -> None:
    data = opened(folder, turns, {**SODA, "weight": 1}, {**TASKS, "weight": 1}, eval_samples=2)
    assert kinds(turns, data.held_out()) == {"Soda": 1, "Task": 1}


def test_absent_parts_are_named_all_at_once_with_what_they_want(tmp_path: Path, folder: Path, turns: Turns) -> None:
    parts = [{"name": name, "weight": 1} for name in ("soda", "redpajama", "lmsys", "pg19")]
    with pytest.raises(DataError) as caught:
        opened(tmp_path / "nowhere", turns, *parts)
    said = str(caught.value)
    assert said.startswith("4 of the 4 parts of the mixture cannot be read.")
    wants = {"soda": "valid.parquet", "redpajama": "*.json.gz", "lmsys": "*.parquet", "pg19": "*.txt.gz"}
    for name, wanted in wants.items():
        line = next(line for line in said.splitlines() if line.startswith(f"  {name}: "))
        assert str(tmp_path / "nowhere" / name) in line
        assert wanted in line
    (folder / "soda" / "train.jsonl").write_text("{oops")  # which is not read while another part is absent
    with pytest.raises(DataError, match=r"^1 of the 4 parts of the mixture cannot be read.\n  pg19: [^\n]*$"):
        opened(folder, turns, *parts)


def test_a_part_lies_where_it_says(folder: Path, turns: Turns) -> None:
    for within, path in ((None, folder / "custom"), (folder, "custom/tasks.jsonl"), (folder, str(folder / "custom"))):
        assert kinds(turns, opened(within, turns, {**TASKS, "path": str(path)}).pool(0, 5)) == {"Task": 5}
    made = opened(folder, turns, {"name": "builtin", "path": None, "weight": 1}, {**TASKS, "weight": 1})
    assert 0 < kinds(turns, made.pool(0, 20))["Task"] < 20


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], r"needs data.options.parts, a list of data sets such as \[{name: soda"),
        (["soda"], "Part 1 of data.options.parts is 'soda'; it must be a table with the name"),
        ([{**TASKS, "weigth": 1}], "Part 1 of data.options.parts has unknown keys .*Did you mean weight"),
        ([{"name": "custum", "path": "custom", "weight": 1}], "no data set 'custum'. Did you mean custom"),
        ([{**TASKS, "weight": 0}], "weight of the part 'custom' is 0; it must be a number above 0"),
        ([{**TASKS, "weight": 1}, SODA], "Give every part of the mixture a weight: some parts have one"),
        ([TASKS, {"name": "redpajama"}], "Give every part of the mixture a weight: redpajama has no end"),
        ([{**TASKS, "weight": 1}, {**SODA, "weight": 5000}], "custom would have less than one of 1000 samples"),
    ],
)
def test_parts_without_meaning_are_refused(folder: Path, turns: Turns, parts: list[Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(folder, turns, *parts)


def test_a_place_and_files_to_evaluate_on_belong_to_the_parts(folder: Path, turns: Turns) -> None:
    with pytest.raises(ConfigError, match="has no path; set data.path to the folder that holds custom"):
        opened(None, turns, TASKS)
    with pytest.raises(ConfigError, match=r"no data.eval_path; the parts hold samples out"):
        opened(folder, turns, TASKS, eval_path="x")


# Recipes -------------------------------------------------------------------------------------------------------------


def test_recipes_with_the_authors_settings() -> None:
    for name, parts in (("unified", ["metaicl", "soda"]), ("pretrain", ["redpajama", "lmsys", "metaicl", "soda"])):
        recipe = load_recipe(name)
        assert (recipe.max_steps, recipe.batch_size, recipe.lr, recipe.adapter.lora.r) == (4000, 128, 3e-4, 16)
        assert (recipe.adapter.rule, recipe.adapter.n_tok, dict(recipe.objective)) == ("concat", 2, {"last": 1.0})
        assert recipe.adapter.sink is (name == "pretrain")
        assert [part["name"] for part in recipe.data.options["parts"]] == parts


@pytest.mark.parametrize("name", ["unified", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_a_dry_run_of_each_recipe_takes_a_folder_of_its_parts(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DATA_SETS, "metaicl", "ccm.data.custom")  # tasks of the same shape, in lines that are our own
    (folder / "custom").rename(folder / "metaicl")
    monkeypatch.setattr(sys, "argv", ["ccm", "train", name, "--set", f"data.path={folder}", "--dry-run"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    recipe, sample = capsys.readouterr().out.split("One sample; the text after > is learned.")
    assert yaml.safe_load(recipe)["data"]["options"]["parts"] == load_recipe(name).data.options["parts"]
    assert "[COMP 1][COMP 2]" in sample


def test_a_recipe_of_a_mixture_is_plain_data(folder: Path) -> None:
    """What a run keeps to compare with when it is resumed."""
    recipe = load_recipe("pretrain", [f"data.path={folder}"])
    assert yaml.safe_load(yaml.safe_dump(asdict(recipe.data)["options"])) == recipe.data.options
