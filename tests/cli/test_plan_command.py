"""``ccm plan``: tables, JSON and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call
from helpers import tiny_base, tiny_model

LLAMA = ("--layers", "32", "--kv-heads", "8", "--head-size", "128", "--positions", "131072")


def test_a_plan_of_the_built_in_model_fits_a_terminal(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert (
        call(monkeypatch, "plan", "--conversations", "1000000", "--turns", "2000", "--rate", "500", terminal=True) == 0
    )
    out, err = capsys.readouterr()
    assert not err
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert out.startswith("builtin: 4 layers with 6 K/V heads of 32, float16; an entry takes 3.0 KB.")
    assert "concat *" in out
    assert "Under concat, these limits are below the plan, the nearest first:" in out
    assert "positions for 15 turns" in out


def test_json_holds_all_rules_and_their_limits(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "plan", *LLAMA, "--rule", "gate", "--n-tok", "4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rule"], told["n_tok"], told["shape"]["entry_nbytes"]) == ("gate", 4, 131_072)
    by_rule = {one["rule"]: one for one in told["rules"]}
    assert by_rule["gate"]["nbytes"] == 4 * 131_072
    assert by_rule["concat"]["limits"]["positions"] == 655
    assert by_rule["full"]["exceeded"][0] == "quota"


def test_an_adapter_brings_its_rule_its_n_and_its_base(monkeypatch, capsys, tmp_path: Path) -> None:
    tiny_base("llama").save_pretrained(tmp_path / "base")
    model = tiny_model("merge", n_tok=3, base_model=str(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    assert call(monkeypatch, "plan", "--adapter", str(tmp_path / "adapter"), "--turn-tokens", "9", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["rule"], told["n_tok"]) == ("base", "merge", 3)
    assert call(monkeypatch, "plan", "--adapter", str(tmp_path / "adapter"), *LLAMA, "--json") == 0
    assert json.loads(capsys.readouterr().out)["shape"]["entry_nbytes"] == 131_072


def test_a_shipped_adapter_is_planned_for_its_rule(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "plan", "--rule", "gate", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["rule"], told["n_tok"]) == ("builtin", "gate", 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--layers", "32"), "The sizes of a model are --layers N, --kv-heads N and --head-size N together"),
        ((*LLAMA, "--model", "builtin"), "without --model MODEL"),
        (("--rule", "gates"), "There is no rule 'gates'. Did you mean gate?"),
        (("--turns", "0"), "turns is 0; it must be from 1"),
        (("--memory", "0"), "memory is 0.0; it must be at least 0.001"),
        (("--turn-tokens", "5000"), "--turn-tokens 5000 are more than the 3072 positions"),
        (("--dtype", "int3"), "There is no dtype 'int3'"),
        (("--adapter", "./nowhere"), "There is no folder ./nowhere"),
        ((*LLAMA, "--n-tok", "0"), "--n-tok is 0"),
    ],
)
def test_what_cannot_be_planned_is_one_line(monkeypatch, capsys, arguments: tuple[str, ...], said: str) -> None:
    assert call(monkeypatch, "plan", *arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.count("\n") == 1
