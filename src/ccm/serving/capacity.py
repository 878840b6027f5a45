"""How many conversations a machine takes: bytes of memories, of a store and of traffic, from the shape of a model.

A conversation after T turns of equal length:

rule that adds   (concat)        [ N | N | N | ... ]    T x N entries; the store keeps each of them once
rule that folds  (merge, gate)   [ N ]                  N entries; the store keeps the newest memories and landmarks
full context     (full)          [ turn | turn | ... ]  an entry for each token of text

Where the model's positions end, the oldest turns make way: from there on, no memory grows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ccm.core.config import CCMConfig, bounded, check_fields
from ccm.core.errors import ConfigError
from ccm.core.rules import RULES, Rule, make_rule
from ccm.models.shapes import ModelShape
from ccm.serving.settings import ServerSettings
from ccm.serving.store import LANDMARK, NEWEST

GB = 2**30
# of what is stored, in bytes; JSON and headers vary by a few of them
_TENSOR = 80  # line of a tensor in a header of safetensors
_COLUMN = 9  # position and mask of an entry
_STEP = 16  # record of a step
_RESPONSE = 1300  # a turn without its text: request and response as JSON
_TRANSCRIPT = 80  # what a turn added, as JSON without its text
_TEXT, _ID = 4, 6  # a token as text, and its id in JSON


@dataclass(frozen=True)
class Workload:
    """The conversations to plan for.

    Attributes:
        conversations: how many are kept.
        turns: T, of each.
        turn_tokens: tokens of a turn: what is said, the reply, and the marks around them.
        system_tokens: tokens of the head, which stands before all turns and is not compressed.
        rate: turns per second, over all conversations.

    Raises:
        ConfigError: when a number is out of bounds.
    """

    conversations: int = bounded(1000, 1)
    turns: int = bounded(100, 1, 1_000_000)
    turn_tokens: int = bounded(200, 1)
    system_tokens: int = bounded(0, 0)
    rate: float = bounded(10.0, 0.001)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Machine:
    """The hardware that serves them.

    Attributes:
        memory: GB of an accelerator that the weights leave for keys and values.
        store: GB that a store may take, such as the memory of one Redis.
        network: Gbit/s between server and store.

    Raises:
        ConfigError: when a number is out of bounds.
    """

    memory: float = bounded(16.0, 0.001)
    store: float = bounded(64.0, 0.001)
    network: float = bounded(10.0, 0.001)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Limits:
    """The largest numbers that are possible, or those that are planned.

    Attributes:
        positions: turns of a conversation for which the model has positions; None without a limit.
        steps: turns of a conversation that the server takes.
        memory: conversations that are answered at the same time: the accelerator holds their keys and values.
        store: conversations in the store.
        quota: conversations of one API key.
        network: turns per second whose memories cross the network.
        requests: turns per second of one API key.
    """

    positions: int | None
    steps: int
    memory: int
    store: int
    quota: int
    network: float
    requests: float


@dataclass(frozen=True)
class RulePlan:
    """What one rule takes.

    Attributes:
        rule: its name.
        entries: entries of a conversation's memory after its turns, without the head.
        nbytes: their keys and values, as :attr:`ccm.Memory.nbytes`.
        per_gb: conversations whose memories fill a GB; None where a memory is empty.
        answering_nbytes: keys and values on the accelerator at the end of the next turn: head, memory, the turn and its
            COMP tokens. The last token of the turn reads all of them.
        stored_nbytes: what the store keeps of the conversation, memories and text.
        read_nbytes: what the next turn reads from the store.
        written_nbytes: what it writes.
        limits: the largest numbers that are possible.
        first: name of the limit that is reached first: the smallest in proportion to the plan.
        exceeded: names of all limits below the plan, in the order in which they are reached.
    """

    rule: str
    entries: int
    nbytes: int
    per_gb: int | None
    answering_nbytes: int
    stored_nbytes: int
    read_nbytes: int
    written_nbytes: int
    limits: Limits
    first: str
    exceeded: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What conversations take under several rules.

    Attributes:
        shape: the model.
        n_tok: N, the number of COMP tokens of a turn.
        rule: the rule that is planned; the others stand beside it.
        workload: the conversations.
        machine: the hardware.
        planned: the workload in terms of the limits.
        rules: what each rule takes.
        windowed_nbytes: full context of a conversation in an engine that drops what sliding windows no longer see; None
            where all layers see all text.
    """

    shape: ModelShape
    n_tok: int
    rule: str
    workload: Workload
    machine: Machine
    planned: Limits
    rules: tuple[RulePlan, ...]
    windowed_nbytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """The plan as values that JSON can hold."""
        told = asdict(self)
        told["shape"]["entry_nbytes"] = self.shape.entry_nbytes
        return told


def make_plan(
    shape: ModelShape, config: CCMConfig, workload: Workload, machine: Machine, settings: ServerSettings
) -> Plan:
    """Plan for the config's own rule, beside all rules that compress every turn and full context.

    Args:
        shape: the model.
        config: settings of an adapter: its rule, N, sink, and positions of COMP tokens.
        workload: the conversations.
        machine: the hardware.
        settings: the limits of the server.

    Raises:
        ConfigError: when the rule is unknown, or the model has too few positions for a turn.
    """
    load, own = workload, make_rule(config.rule, dict(config.rule_options))
    stock = [kind for kind in RULES.values() if kind.compresses == "never" and kind.keeps_text]
    kinds = [kind for kind in RULES.values() if kind.compresses == "step"]
    rules = [own if kind is type(own) else kind() for kind in dict.fromkeys([*kinds, type(own), *stock])]
    planned = Limits(
        load.turns, load.turns, settings.batch, load.conversations, load.conversations, load.rate, load.rate
    )
    conversations = [_Conversation(rule, shape, config, load) for rule in rules]
    windowed = None
    if any(shape.windows):
        tokens = load.system_tokens + load.turn_tokens * conversations[-1].held
        layers = zip(shape.layer_nbytes, shape.windows, strict=True)
        windowed = sum(nbytes * min(tokens, window or tokens) for nbytes, window in layers)
    plans = tuple(_plan(one, planned, machine, settings) for one in conversations)
    return Plan(shape, config.n_tok, config.rule, load, machine, planned, plans, windowed)


def _plan(one: _Conversation, planned: Limits, machine: Machine, settings: ServerSettings) -> RulePlan:
    stored, answering, traffic = one.stored_nbytes, one.answering_nbytes, one.read_nbytes + one.written_nbytes
    limits = Limits(
        positions=one.positions_end,
        steps=settings.steps,
        memory=int(machine.memory * GB) // answering,
        store=int(machine.store * GB) // stored,
        quota=settings.quota // stored,
        network=machine.network * 1e9 / 8 / traffic,
        requests=settings.rate / 60,
    )
    asked = asdict(planned)
    shares = {name: most / asked[name] for name, most in asdict(limits).items() if most is not None}
    order = sorted(shares, key=shares.__getitem__)
    return RulePlan(
        rule=one.rule.name,
        entries=one.entries,
        nbytes=one.nbytes,
        per_gb=GB // one.nbytes if one.nbytes else None,
        answering_nbytes=answering,
        stored_nbytes=stored,
        read_nbytes=one.read_nbytes,
        written_nbytes=one.written_nbytes,
        limits=limits,
        first=order[0],
        exceeded=tuple(name for name in order if shares[name] < 1),
    )


@dataclass(frozen=True)
class _Conversation:
    """One conversation under a rule, after its turns."""

    rule: Rule
    shape: ModelShape
    config: CCMConfig
    load: Workload

    @property
    def comp(self) -> int:
        """COMP tokens that follow each turn."""
        return self.config.n_tok if self.rule.compresses == "step" else 0

    @property
    def turn_positions(self) -> int:
        """Text positions that a turn takes."""
        return self.load.turn_tokens + (self.comp if self.config.positions == "base" else 0)

    @property
    def positions_end(self) -> int | None:
        """How many turns the model has positions for; None without a limit.

        Raises:
            ConfigError: when there are too few for one turn.
        """
        if self.shape.positions is None:
            return None
        load, reserved = self.load, 0 if self.rule.compresses == "never" else self.config.n_tok
        reserved -= self.turn_positions - load.turn_tokens  # COMP tokens that take positions need no others
        turns = (self.shape.positions - load.system_tokens - reserved) // self.turn_positions
        if turns < 1:
            raise ConfigError(
                f"system_tokens={load.system_tokens} and turn_tokens={load.turn_tokens} are more than the "
                f"{self.shape.positions} positions that the model was made for. Plan with shorter ones."
            )
        return None if self.rule.forgets else turns

    @property
    def held(self) -> int:
        """How many of the turns are in memory: none made way yet, or as many as there are positions for."""
        return min(self.load.turns, self.positions_end or self.load.turns)

    @property
    def added(self) -> int:
        """Entries that a turn writes."""
        return self.rule.entries_of(self.load.turn_tokens, self.config.n_tok)

    @property
    def sink(self) -> int:
        """Entries that stand beside those of the turns: the first token, where no head is before it."""
        return int(self.config.sink and self.rule.compresses == "step" and not self.load.system_tokens)

    @property
    def entries(self) -> int:
        """Entries of the memory."""
        written = self.rule.holds(torch.arange(1, self.held + 1), torch.tensor(self.held))
        return int(written.sum()) * self.added + self.sink

    @property
    def nbytes(self) -> int:
        """Keys and values of the memory."""
        return self.entries * self.shape.entry_nbytes

    @property
    def answering_nbytes(self) -> int:
        """Keys and values at the end of the next turn."""
        columns = self.load.system_tokens + self.entries + self.load.turn_tokens + self.comp
        return columns * self.shape.entry_nbytes

    def _packed(self, entries: int, steps: int) -> int:
        """Bytes that the store keeps of so many entries and records of steps."""
        header = _TENSOR * (2 * len(self.shape.sizes) + 3)
        return entries * (self.shape.entry_nbytes + _COLUMN) + header + steps * _STEP

    @property
    def _transcript(self) -> int:
        """Bytes of text beside each memory in the store."""
        load = self.load
        return _TRANSCRIPT + load.turn_tokens * (_TEXT + _ID) + load.system_tokens * _TEXT

    @property
    def _response(self) -> int:
        """Bytes of a turn beside its memory: what was asked and answered."""
        return _RESPONSE + (self.load.turn_tokens + self.load.system_tokens) * _TEXT

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the store keeps of all turns."""
        turns = self.load.turns
        text = turns * (self._transcript + self._response)
        if not self.rule.reversible:
            kept = {*range(0, turns, LANDMARK), *range(max(turns - NEWEST, 0), turns)}
            return text + sum(self._packed(self.entries, number + 1) for number in kept)
        data = turns * self._packed(self.added, 1) + self.sink * self.shape.entry_nbytes
        over = turns - self.held  # where turns made way, a memory is written whole
        if over and self.shape.positions is not None:
            freed = -(-(self.shape.positions // 8) // self.turn_positions)  # turns at a time
            data += -(-over // freed) * self._packed(max(self.held - freed, 0) * self.added, (turns + self.held) // 2)
        return text + data

    @property
    def read_nbytes(self) -> int:
        """Bytes that the next turn reads from the store: the whole memory, with the text beside its parts."""
        if not self.rule.reversible:
            return self._packed(self.entries, self.load.turns) + self._transcript + self._response
        return self.held * (self._packed(self.added, 1) + self._transcript) + self._response

    @property
    def written_nbytes(self) -> int:
        """Bytes that the next turn writes to the store."""
        changed = (self.added, 1) if self.rule.reversible else (self.entries, self.load.turns + 1)
        return self._packed(*changed) + self._transcript + self._response
