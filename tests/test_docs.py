"""The Python code of the documents is run as it is written; that their commands exist is checked."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from commands import call
from helpers import Row, assert_close, compress_all, make_sample, online_logits, parallel_logits, tiny_model
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig

from ccm import cli, data
from ccm.core import rules
from ccm.core.provenance import ModelSource, write_about
from ccm.core.rules import RULES
from ccm.data import tasks
from ccm.data.sources.catalogue import SOURCES
from ccm.models.base import load_base
from ccm.models.builtin import WEIGHTS
from ccm.models.cache import model_folder
from ccm.streams.evictions import StreamSettings
from ccm.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]


def examples(document: str) -> list[str]:
    """The Python code of a document, block by block."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.S | re.M)


def test_the_example_of_the_readme(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = examples("README.md")
    names: dict = {}
    exec(code, names)
    out, err = capsys.readouterr()
    assert "Your name is Anna.   [" in out
    assert not err
    assert (tmp_path / "anna.memory").is_file()
    assert len(names["earlier"].steps[0]) == 2


def test_the_examples_of_how_it_works() -> None:
    names: dict = {}
    for code in examples("docs/how-it-works.md"):
        exec(code, names)
    assert names["logits"].shape == (*names["query"].shape, names["model"].vocab_size)
    assert names["turns"].decode(names["reply"][0].tolist()) == "Your name is Anna."


def test_the_guide_to_streams(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in examples("docs/stream.md"):
        exec(code, names)
    assert "compressions" in capsys.readouterr().out
    assert names["losses"].shape == (1, names["stream"].tokens - 1)
    assert names["chat"].past.recent == names["chat"].past.tokens
    assert names["again"].tokens == names["stream"].tokens + names["logits"].shape[1]
    text = (ROOT / "docs/stream.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ccm (stream [^#\n]+)", text, re.M)
    assert len(commands) >= 4
    (tmp_path / "book.txt").touch()
    (tmp_path / "books").mkdir()
    monkeypatch.setattr("ccm.core.adapter_folders.find_adapter", Path)  # of the adapter DIR
    asked: list = []
    monkeypatch.setattr("ccm.cli.commands.stream.run", lambda run, *rest, **options: asked.append(run))
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["ccm", *shlex.split(command)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
    assert (asked[2].offset, asked[2].tokens) == (9000, 16000)


def test_the_guide_for_users_of_transformers(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    names: dict = {}
    for code in examples("docs/transformers.md"):
        exec(code, names)
    out = capsys.readouterr().out
    assert "{'role': 'assistant', 'content': 'Your name is Anna.'}" in out
    assert out.count("Your name is Anna.") >= 4
    assert names["decoding"].stream.evictions > 6
    assert 1 <= names["text"].shape[1] - names["prompt"].input_ids.shape[1] <= 20
    assert len(names["memory"].steps[0]) == 2
    card = (Path(names["ccm"].transformers.CUSTOM_GENERATE) / "README.md").read_text(encoding="utf-8")
    given = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", card, re.M))
    assert {name: int(value) for name, value in given.items()}.items() <= vars(StreamSettings()).items()
    assert len(given) == 4


def test_the_rules_of_contributing_and_their_rows() -> None:
    before, rows = set(RULES), {}
    try:
        for code in examples("CONTRIBUTING.md"):
            if code.startswith("class"):
                exec(code, {**vars(rules)})
            else:
                row = eval(code.strip().rstrip(","), {"Row": Row})
                rows[row.name] = row
        assert rows.keys() == set(RULES) - before == {"recent", "window"}
        for row in rows.values():
            model = tiny_model(row.name, rule_options=row.options)
            told = make_sample([3, 5, 2], 3)
            (logits,) = parallel_logits(model, [told])
            assert_close(online_logits(model, told), logits)
            memories = [compress_all(model, replace(told, steps=told.steps[:count])) for count in (1, 2, 3)]
            assert tuple(memory.entries[0] for memory in memories) == row.open
            assert model.close(memories[-1]).entries == (row.closed,)
            assert (model.rule.compresses, model.rule.reversible, model.rule.adapters) == (
                row.compresses,
                row.reversible,
                row.adapters,
            )
    finally:
        for name in set(RULES) - before:
            del RULES[name]


def test_the_examples_for_users_of_the_authors_code(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(WEIGHTS / "base", "BASE")
    stage1 = get_peft_model(load_base("BASE"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    stage1.save_pretrained("llama-7b-no")
    names: dict = {}
    for code in examples("docs/from-the-authors.md"):
        exec(code, names)
    assert capsys.readouterr().out.strip()
    assert names["model"].config.rule == "concat"


def test_the_guide_to_plans_shows_what_its_commands_print(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CCM_CACHE", str(tmp_path))
    folder = model_folder("smollm2-135m")
    folder.mkdir(parents=True)
    write_about(folder, ModelSource("smollm2-135m", "registry", "Q4_1"))
    config = LlamaConfig(
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        hidden_size=576,
        max_position_embeddings=8192,
        dtype="float32",
    )
    config.save_pretrained(folder)
    text = (ROOT / "docs/plan.md").read_text(encoding="utf-8")
    commands = re.findall(r"^ccm ((?:[^\n]*\\\n)*[^\n]*)", text, re.M)
    shown = re.findall(r"^```text\n(.*?)^```", text, re.S | re.M)
    assert len(commands) == len(shown) == 2
    for command, said in zip(commands, shown, strict=True):
        assert call(monkeypatch, *shlex.split(command.replace("\\\n", " "))) == 0
        assert capsys.readouterr().out.split() == said.split()


def test_every_target_and_command_exists(monkeypatch) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make (\w+)", text, re.M))
    assert targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    commands = re.findall(r"^\.venv/bin/ccm ([^#\n]+)", text, re.M)
    assert commands
    listed = re.findall(r"^\| `ccm ([^`]+)` \|", (ROOT / "docs/commands.md").read_text(encoding="utf-8"), re.M)
    assert len(listed) >= 20
    guide = (ROOT / "docs/evaluate.md").read_text(encoding="utf-8")
    measured = re.findall(r"^ccm ((?:evaluate|report) [a-z][^\n]*)", guide, re.M)
    assert len(measured) >= 3
    monkeypatch.setattr("typer.rich_utils.rich_format_help", lambda **_: None)  # which takes longest, and is not read
    for command in [*commands, *listed, *measured]:
        monkeypatch.setattr(sys, "argv", ["ccm", *command.split(), "--help"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0


def test_the_guide_to_training(capsys, tmp_path: Path, monkeypatch) -> None:
    """Its data is read as it stands, its recipes are known, and the look before the first training is shown."""
    text = (ROOT / "docs/train.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Path("chats.jsonl").write_text(re.findall(r"^```json\n(.*?)^```", text, re.S | re.M)[0], encoding="utf-8")
    commands = re.findall(r"^(?:torchrun .* )?ccm train ((?:[^\n]*\\\n)*[^\n]*)", text, re.M)
    assert len(commands) >= 6
    for command in commands:
        source, *words = shlex.split(command.replace("\\\n", " "))
        changes = [word for before, word in pairwise(words) if before == "--set"]
        stage: Any = words[words.index("--stage") + 1] if "--stage" in words else None
        assert load_recipe(source, changes, stage).output_dir
    monkeypatch.setattr(sys, "argv", ["ccm", "train", *shlex.split(commands[0])])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert "[COMP 1][COMP 2]" in capsys.readouterr().out


def test_the_guide_to_data_sets(tmp_path: Path, monkeypatch) -> None:
    """Its data set is trained on and measured, and it names all that can be prepared."""
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == [*SOURCES]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(data, "DATA_SETS", {**data.DATA_SETS})
    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS})
    (module, use), (riddles,) = examples("docs/data.md"), re.findall(r"^```text\n(.*?)^```", text, re.S | re.M)
    Path("riddles.txt").write_text(riddles, encoding="utf-8")
    Path("riddles.py").write_text(module, encoding="utf-8")
    names: dict = {}
    exec(use, names)
    assert Path("riddler/ccm_adapter.safetensors").is_file()
    lines = [result.line for result in names["results"]]
    assert {line.method for line in lines} == {"full", "none", "concat"}
    assert all(line.questions == 3 for line in lines)


def test_the_guide_to_lm_eval(capsys) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    names: dict = {}
    for code in examples("docs/lm-eval.md"):
        exec(code, names)
    assert names["lm"].model.config.rule == "concat"
    assert int(capsys.readouterr().out) > 100


def test_the_rules_are_all_in_the_table() -> None:
    text = (ROOT / "docs/how-it-works.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in RULES)


def test_a_server_takes_the_options_that_image_and_guide_give_it() -> None:
    """Those of the Dockerfile, with those that compose.yaml adds, and all of docs/operate.md."""
    image, composed, guide = (
        (ROOT / name).read_text("utf-8") for name in ("Dockerfile", "compose.yaml", "docs/operate.md")
    )
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", image, re.M)
    guided = re.findall(r"^(?:ExecStart=/opt/ccm/bin/)?ccm serve (.*)$", guide, re.M)
    serve = typer.main.get_command(cli.app).commands["serve"]
    services = yaml.safe_load(composed)["services"]
    for name in ("server1", "server2"):
        told = serve.make_context("serve", [*json.loads(entry)[2:], *services[name]["command"]]).params
        assert (told["host"], told["store"]) == ("0.0.0.0", "redis://redis:6379/0")
        assert [str(told[one]) for one in services[name]["secrets"]] == ["/run/secrets/keys", "/run/secrets/secret"]
    assert len(guided) == 2
    for line in guided:
        assert serve.make_context("serve", line.split()).params["log"] == "json"
