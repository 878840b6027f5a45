"""What is seen to before a training writes anything: that it can begin, and go on from a checkpoint."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ccm_config, rewrite
from tiny_training import Tiny, begin

from ccm.core.errors import ConfigError, TrainingError
from ccm.core.files import load_tensors, save_tensors
from ccm.training import stages
from ccm.training.checks import check
from ccm.training.loop import train


def holds(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("there", [False, True], ids=["resume", "start"])
def test_what_cannot_be_gone_on_with_is_refused_by_the_checkpoint_and_nothing_is_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Another base, its negative; other data, the same in another order; a dtype that "auto" chose otherwise.

    The log is longer than the checkpoint, as that of a training that broke off.
    """
    recipe = tiny.recipe(tmp_path / "out", max_steps=4, save_every=3)
    train(recipe)
    start = tmp_path / "out" / "checkpoints" / "step-000003.safetensors"
    start.with_name("step-000004.safetensors").unlink()
    negative = tmp_path / "negative"
    shutil.copytree(tiny.base, negative)
    tensors = load_tensors(negative / "model.safetensors")[0]
    save_tensors(negative / "model.safetensors", {name: -t for name, t in tensors.items()}, {"format": "pt"})
    chats = tmp_path / "other.jsonl"
    chats.write_text("".join(reversed(tiny.chats.read_text().splitlines(keepends=True))))
    out = tmp_path / "there" if there else tmp_path / "out"
    recipe = replace(recipe, output_dir=str(out))
    others = {
        r"base \w{16} \(now \w{16}\)": {"model": str(negative)},
        r"data \w{16} \(now \w{16}\)": {"data": replace(recipe.data, path=str(chats))},
        r"dtype float32 \(now bfloat16\)": {},
    }
    before, load = holds(tmp_path), stages.load_base
    for other, changes in others.items():
        if not changes:
            monkeypatch.setattr(stages, "load_base", lambda *_, dtype, **also: load(*_, dtype=torch.bfloat16, **also))
        with pytest.raises(ConfigError, match=f"^The checkpoint {start} was made with another {other}. Resume with"):
            train(replace(recipe, **changes), resume=not there, start=start if there else None)
        assert holds(tmp_path) == before
        assert out.exists() != there


def test_data_that_changed_anywhere_in_what_was_drawn_is_noticed(tiny: Tiny, tmp_path: Path) -> None:
    """Only the last steps draw what has changed; the first batch is as it was."""
    chats = tmp_path / "chats.jsonl"
    shutil.copy(tiny.chats, chats)
    data = replace(tiny.recipe().data, path=str(chats))
    recipe = tiny.recipe(tmp_path / "out", data=data, max_steps=4, batch_size=2, pool=1)
    train(recipe)
    training = begin(recipe)
    first, *_, last = itertools.islice(training.batches.since(0), 4)
    words = training.stage.turns.tokenizer
    known = {words.decode(sample.query.ids) for sample in first.samples}
    lines = chats.read_text().splitlines(keepends=True)
    changed = None
    for number, line in enumerate(lines):
        said = [message["content"] for message in json.loads(line)["messages"]]
        shown = [words.decode(step.ids) for sample in last.samples for step in (*sample.steps, sample.query)]
        if said[0] in "".join(shown) and not any(said[0] in text for text in known):
            changed = number
    assert changed is not None
    lines[changed] = lines[changed].replace("anna", "annb").replace("tea", "tee").replace("the", "thy")
    chats.write_text("".join(lines))
    with pytest.raises(ConfigError, match=r"was made with another data \w{16} \(now \w{16}\)"):
        train(recipe, resume=True)


@pytest.mark.parametrize("change", [lambda n, t: {f"{n}.x": t}, lambda n, t: {n: t[:1].clone()}, lambda n, t: {}])
def test_a_checkpoint_of_other_tensors_than_are_trained_is_not_gone_on_with(
    tiny: Tiny, tmp_path: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]
) -> None:
    recipe = tiny.recipe(tmp_path / "out", max_steps=1)
    train(recipe)
    path, name = tmp_path / "out" / "checkpoints" / "step-000001.safetensors", "comp_embeddings.weight"

    def spoil(tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        for part in ("trained", "first", "second"):
            tensor = tensors.pop(f"{part}.{name}")
            tensors |= {f"{part}.{n}": t for n, t in change(name, tensor).items()}
        del state["updates"][name]
        state["updates"] |= dict.fromkeys(change(name, torch.ones(2)), 1)

    rewrite(path, spoil)
    before = holds(tmp_path)
    with pytest.raises(TrainingError, match=rf"The checkpoint {path} does not hold the tensors that .*{name}"):
        train(recipe, resume=True)
    assert holds(tmp_path) == before


def test_mixed_precision_of_a_base_in_half_precision_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"in float32, but the base is in torch.bfloat16"):
        begin(tiny.recipe(mixed_precision=True, dtype="bfloat16"))


@pytest.mark.parametrize(("processes", "said"), [(1, False), (2, False), (3, True)])
def test_too_few_samples_held_out_are_spoken_of(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, processes: int, said: bool
) -> None:
    training = begin(tiny.recipe())
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    check(training.recipe, training.data, training.stage)
    assert (f"it holds out 2 samples, but each of {processes} processes needs one" in caplog.text) == said


def test_data_longer_than_the_model_is_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"may end at position \d+, but the model supports 512 positions. Lower data.max_steps"
    ):
        train(tiny.recipe(tmp_path / "out", max_offset=450))
    assert not (tmp_path / "out").exists()


def test_positions_of_comp_tokens_count_where_they_are_text(tiny: Tiny, tmp_path: Path) -> None:
    longest = begin(tiny.recipe()).data.longest
    config = ccm_config("concat", n_tok=8, positions="base")
    recipe = tiny.recipe(
        tmp_path / "out",
        adapter=config,
        max_offset=512 - longest - 8,
        batch_size=24,
        data=replace(tiny.recipe().data, random_steps=False),
        max_steps=2,
        pool=1,
    )
    with pytest.raises(ConfigError, match="the model supports 512 positions"):
        train(recipe)
