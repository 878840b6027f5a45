"""Sharing adapters: their facts, their model cards, and their upload to the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ccm.core.errors import AdapterError, ConfigError, reason
from ccm.core.files import write_atomically
from ccm.core.hub import why
from ccm.core.rules import rule_class
from ccm.core.units import size
from ccm.engine.adapter_files import SavedAdapter, read_adapter, write_adapter
from ccm.evaluation.report import tables, title
from ccm.evaluation.results import Result
from ccm.models.published import SOURCE

CARD = "README.md"
_PAPER = "https://arxiv.org/abs/2312.03414"

_USE = ("chat = ccm.Conversation(model, tokenizer)", 'print(chat.answer("My name is Anna."))')
_ENCODER_USE = (
    'ids = {"add_special_tokens": False, "return_tensors": "pt"}',
    'step, query = (tokenizer(text, **ids).input_ids for text in ("The context.", "The question?"))',
    "memory = model.compress(model.empty_memory(), step)",
    "print(tokenizer.decode(model.generate(memory, query, max_new_tokens=20)[0]))",
)


def facts(adapter: SavedAdapter) -> dict[str, str]:
    """Facts about an adapter to show to people, by name."""
    config, turns = adapter.config, adapter.config.turns
    least, most = config.n_tok_range
    trained = [*adapter.tensors.values()]
    count, taken = sum(t.numel() for t in trained), sum(t.numel() * t.element_size() for t in trained)
    written = "chat template" if turns.template == "chat" else f"{turns.separator!r}, {turns.reply_separator!r}"
    acting = "at COMP tokens" if config.lora.conditional else "at all tokens"
    lora = f"rank {config.lora.r}, alpha {config.lora.alpha:g}, {acting}" if config.lora.r else "none"
    memory = {
        "COMP tokens a step (N)": str(config.n_tok)
        if least == most
        else f"{config.n_tok}, trained for {least} to {most}",
        "recurrent": "yes" if config.recurrent else "no",
        "sink": "yes" if config.sink else "no",
        "positions": config.positions,
        "LoRA": lora,
        "trained": f"{count:,} numbers, {size(taken)}",
    }
    return {
        "rule": config.rule + (f" {json.dumps(dict(config.rule_options))}" if config.rule_options else ""),
        **(memory if rule_class(config.rule).compresses != "never" else {}),
        "turns": written + (f", begun with {turns.preamble!r}" if turns.preamble else ""),
        "base model": config.base_model or "not named",
        "fingerprint of the base": config.base_fingerprint or "none: not checked against a base yet",
        "stage-1 adapter": f"inside, rank {adapter.stage1.settings['r']}" if adapter.stage1 else "none",
    }


def make_card(adapter: SavedAdapter, name: str, results: Sequence[Sequence[Result]] = ()) -> str:
    """A model card in Markdown, from the adapter's settings and from results, a list for each task."""
    base = adapter.config.base_model
    head = ["---", f"base_model: {base}", "base_model_relation: adapter", "tags:", "- compressed-context-memory", "---"]
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts(adapter).items())
    measured = "\n\n".join(f"### {title(one)}\n\n{tables(one)}" for one in results)
    return "\n".join(
        [
            *head,
            "",
            f"# {name}",
            "",
            f"A compressed context memory ([paper]({_PAPER})) for `{base}`. After each step of a context, the frozen "
            f"model reads {adapter.config.n_tok} learned tokens, and only their keys and values are kept. The adapter "
            "acts at these tokens only, so plain PEFT cannot load it.",
            "",
            "```python",
            "import ccm",
            "",
            f'model, tokenizer = ccm.load("{base}", adapter="{name}")',
            *(_ENCODER_USE if adapter.for_encoder else _USE),
            "```",
            "",
            "| | |",
            "| --- | --- |",
            rows,
            "",
            *(["## Results", "", measured.rstrip(), ""] if results else []),
            f"The authors of the paper developed the method ([their code]({SOURCE})).",
            "",
        ]
    )


def write_shared(
    folder: Path, output: Path, name: str, base: str | None = None, results: Sequence[Sequence[Result]] = ()
) -> SavedAdapter:
    """Write an adapter for others into ``output``, with the Hub id of its base and a README.md.

    The README.md is that of the adapter's folder if there is one, else a model card.

    Returns:
        The adapter as written.

    Raises:
        AdapterError: if the folder holds no complete adapter, or its README.md cannot be read.
        ConfigError: if the base is a local folder, and no Hub id is given.
    """
    saved = read_adapter(folder)
    named = base or saved.config.base_model
    if not named or Path(named).is_absolute() or Path(named).is_dir() or (folder / named).is_dir():
        raise ConfigError(
            f"The adapter's base is {named or 'not named'}, which others cannot find; give its Hub id with "
            "base=OWNER/NAME."
        )
    shared = replace(saved, config=replace(saved.config, base_model=named))
    write_adapter(shared, output)
    own = folder / CARD
    try:
        text = own.read_text(encoding="utf-8") if own.is_file() else make_card(shared, name, results)
    except (OSError, UnicodeDecodeError) as error:
        raise AdapterError(f"{own} cannot be read: {reason(error)}; save it as UTF-8.") from error
    write_atomically(output / CARD, lambda path: path.write_text(text, encoding="utf-8"))
    return shared


def push(
    folder: Path, name: str, *, base: str | None = None, results: Sequence[Sequence[Result]] = (), private: bool = False
) -> str:
    """Upload an adapter to the Hub as the repository ``name``; its folder is not changed.

    Returns:
        The address of the repository.

    Raises:
        AdapterError: if the folder holds no complete adapter, or the upload fails; the message has the Hub's reason.
        ConfigError: see :func:`write_shared`.
    """
    with TemporaryDirectory() as place:
        write_shared(folder, Path(place), name, base, results)
        api = HfApi()
        try:
            repository = api.create_repo(name, private=private, exist_ok=True).repo_id
            api.upload_folder(repo_id=repository, folder_path=place, commit_message="An adapter of ccm")
        except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
            raise AdapterError(f"The upload of {name} to the Hub failed: {why(error, name)}") from error
    return f"https://huggingface.co/{repository}"
