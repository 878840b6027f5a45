"""Small English dialogues: a user tells facts about themselves, chats, and asks for them later.

`training_dialogue` and `corpus` mix everything, `recall_dialogue` first tells and then asks, and `judge` scores a
reply. A tenth of the names and cities never occurs in the training split. All randomness comes from the
`random.Random` that a caller gives.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from ccm.core.errors import InputError
from ccm.data.builtin import words
from ccm.data.builtin.words import DOUBLE_LEADS, KINDS, QUESTION_LEADS, STATEMENT_LEADS, STATEMENT_TAILS

UNKNOWN_REPLY = "I don't know."
"""The reply to a question on a fact never told."""

FACTS: tuple[str, ...] = tuple(name for name in KINDS if name != "pet_kind")
"""The kinds told by a sentence of their own; the sentence for "pet" tells "pet_kind" as well."""

HELD_OUT: frozenset[str] = frozenset(words.NAMES[9::10] + words.CITIES[9::10])
"""The names and cities that the training split never uses."""


def _draws(excluded: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """The values to draw from, by kind."""
    return {kind.name: tuple(v for v in kind.draws if v not in excluded) for kind in KINDS.values()}


_DRAWS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": _draws(HELD_OUT),
    "eval": _draws(frozenset()),
    "heldout": _draws(frozenset(words.NAMES + words.CITIES) - HELD_OUT),
}


@dataclass(frozen=True)
class Turn:
    """One user line and the assistant's reply."""

    user: str
    reply: str
    asked: str | None = None  # the kind that the user line asks for
    value: str | None = None  # the right value of the kind asked; None: never told
    told: tuple[tuple[str, str], ...] = ()  # the (kind, value) pairs that the user line tells


@dataclass(frozen=True)
class Dialogue:
    """A conversation; `facts` holds the latest value told of every kind told."""

    turns: tuple[Turn, ...]
    facts: dict[str, str]


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" and not word.startswith(("eu", "uk")) else f"a {word}"


def _fill(wording: str, value: str, animal: str = "x", old: str = "x") -> str:
    """The wording with its fields filled, not yet capitalised."""
    return wording.format(v=value, a=_a(value), k=animal, ak=_a(animal), old=old, aold=_a(old))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _mid(wording: str) -> str:
    """The wording as it is spelled inside a sentence."""
    first = wording.split(" ", 1)[0].split("'", 1)[0]
    return wording if first == "I" or first[0] == "{" else wording[0].lower() + wording[1:]


def _with_lead(lead: str, wording: str) -> str:
    return lead + (wording if lead.endswith("! ") else _mid(wording))


class _Writer:
    """The turns of one dialogue in the making, with what has been told so far."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.draws = _DRAWS[split]
        self.typos = 0.05 if split == "train" else 0.0  # share of carelessly typed user lines
        self.turns: list[Turn] = []
        self.facts: dict[str, str] = {}
        self.order: list[str] = []  # fact kinds told, the longest ago first
        self.chats: list[words.SmallTalk] = []

    def untold(self) -> list[str]:
        return [name for name in FACTS if name not in self.facts]

    def changeable(self) -> list[str]:
        return [name for name in self.order if KINDS[name].changes]

    def dialogue(self) -> Dialogue:
        return Dialogue(tuple(self.turns), dict(self.facts))

    def _add(self, user: str, reply: str, told: Sequence[tuple[str, str]] = ()) -> None:
        self.turns.append(Turn(self._typed(user), _capital(reply), told=tuple(told)))

    def _typed(self, line: str) -> str:
        """The line as the user types it: at times in lower case or without the last mark."""
        line = _capital(line)
        if self.rng.random() >= self.typos:
            return line
        slip = self.rng.randrange(3)  # of the mark, of the capitals, of both
        line = line if slip == 0 else line.lower()
        return line if slip == 1 else line.rstrip(".!?")

    def _learn(self, name: str) -> list[tuple[str, str]]:
        """Draw a new value of the kind, note it as told, and return the pairs told."""
        value = self.rng.choice(self.draws[name])
        while value in self.facts.values():
            value = self.rng.choice(self.draws[name])
        told = [(name, value)]
        if name == "pet":
            told.append(("pet_kind", self.rng.choice(self.draws["pet_kind"])))
        self.facts.update(told)
        if name in self.order:
            self.order.remove(name)
        self.order.append(name)
        return told

    def _filled(self, name: str, wording: str) -> str:
        return _fill(wording, self.facts[name], self.facts.get("pet_kind", "x"))

    def tell(self) -> None:
        """One fact not told before."""
        name = self.rng.choice(self.untold())
        kind, told = KINDS[name], self._learn(name)
        wording = self.rng.choice(kind.statements)
        draw = self.rng.random()
        if draw < 0.25:
            wording = _with_lead(self.rng.choice(STATEMENT_LEADS), wording)
        elif draw < 0.37 and "," not in wording:
            wording = wording[:-1] + self.rng.choice(STATEMENT_TAILS)
        reply = self.rng.choice(kind.replies)
        self._add(self._filled(name, wording), self._filled(name, reply), told)

    def tell_two(self) -> None:
        """Two facts not told before in one line."""
        names = self.rng.sample(self.untold(), 2)
        if names[1] == "name":
            names.reverse()
        told = [pair for name in names for pair in self._learn(name)]
        plain = [[w for w in KINDS[name].statements if "," not in w] for name in names]
        first, second = self.rng.choice(plain[0]), self.rng.choice(plain[1])
        user = f"{self._filled(names[0], first[:-1])} and {self._filled(names[1], _mid(second))}"
        lead = self.rng.choice(DOUBLE_LEADS)
        one, two = (self._filled(name, _mid(KINDS[name].answer)) for name in names)
        self._add(user, f"{lead}{one[:-1]} and {two}", told)

    def change(self) -> None:
        """A new value of a fact told before."""
        name = self.rng.choice(self.changeable())
        old, kind = self.facts[name], KINDS[name]
        told = self._learn(name)
        user = _fill(self.rng.choice(kind.changes), told[0][1], old=old)
        self._add(user, self._filled(name, self.rng.choice(kind.change_replies)), told)

    def chat(self, lines: Sequence[words.SmallTalk] = ()) -> None:
        """Small talk; without `lines` no line comes twice before all have come once."""
        if not self.chats:
            self.chats = self.rng.sample(words.SMALL_TALK, len(words.SMALL_TALK))
        user, replies = self.rng.choice(lines) if lines else self.chats.pop()
        self._add(user, self.rng.choice(replies))

    def ask(self, name: str) -> None:
        """A question on the fact kind, told or not; on the pet it may ask for the animal."""
        if name == "pet" and self.rng.random() < 0.4:
            name = "pet_kind"
        self.turns.append(self._question(name))

    def _question(self, name: str) -> Turn:
        kind, value = KINDS[name], self.facts.get(name)
        wording = self.rng.choice(kind.questions)
        if self.rng.random() < 0.15:
            wording = _with_lead(self.rng.choice(QUESTION_LEADS), wording)
        animal = self.facts.get("pet_kind") or self.rng.choice(self.draws["pet_kind"])
        called = "pet" if self.rng.random() < 0.2 else animal
        user = self._typed(wording.replace("{k}", called))
        if value is None:
            return Turn(user, UNKNOWN_REPLY, asked=name)
        reply = _capital(_fill(kind.answer, value, animal))
        return Turn(user, reply, asked=name, value=value)

    def ask_any(self) -> None:
        """A question as they come in the middle of a dialogue, at times on a fact never told."""
        untold = self.untold()
        if untold and (not self.order or self.rng.random() < 0.12):
            return self.ask(self.rng.choice(untold))
        name = self._remembered()
        if name == self.turns[-1].asked:  # rarely the same question twice in a row
            name = self._remembered()
        return self.ask(name)

    def _remembered(self) -> str:
        """A fact kind told before, more often the oldest or the newest ones."""
        draw, third = self.rng.random(), (len(self.order) + 2) // 3
        if draw < 0.4:
            return self.rng.choice(self.order[:third])
        return self.rng.choice(self.order[-third:] if draw < 0.7 else self.order)


def training_dialogue(rng: random.Random, steps: int, split: str = "train", asking: float = 0.42) -> Dialogue:
    """A random mixture of `steps` turns, `asking` the share of questions; at least one kind of fact is never told."""
    writer = _Writer(rng, split)
    limit = max(1, min(len(FACTS) - 1, round(steps * rng.uniform(0.2, 0.8))))
    for step in range(steps):
        if step == 0 and rng.random() < 0.25:
            writer.chat(words.GREETINGS)
        elif step == steps - 1 and rng.random() < 0.08:
            writer.chat(words.GOODBYES)
        elif rng.random() < (asking if writer.facts else 0.03):
            writer.ask_any()
        else:
            _training_line(writer, limit)
    return writer.dialogue()


def _training_line(writer: _Writer, limit: int) -> None:
    """A turn that is no question, while at most `limit` facts are to be told."""
    left = limit - len(writer.order)
    draw = writer.rng.random()
    if left > 0 and draw < 0.7:
        if left > 1 and writer.rng.random() < 0.22:
            return writer.tell_two()
        return writer.tell()
    if draw > 0.85 and writer.changeable():
        return writer.change()
    return writer.chat()


def recall_dialogue(
    rng: random.Random, steps: int = 12, facts: int = 8, questions: int = 4, split: str = "eval"
) -> Dialogue:
    """First tell `facts` facts in steps - questions turns, then ask `questions` of them.

    The pet's sentence counts as one fact. Turns left over are small talk, changes and, where there are many, earlier
    questions; where turns are few, some lines tell two facts.
    """
    lines = steps - questions
    if not (questions <= facts <= min(len(FACTS), 2 * lines)):
        raise InputError(f"A dialogue of {steps} steps cannot tell {facts} facts and ask for {questions} of them.")
    writer = _Writer(rng, split)
    for action in _recall_plan(rng, lines, facts):
        if action == "ask" and writer.order:
            writer.ask(rng.choice(writer.order))
        elif action == "change" and writer.changeable():
            writer.change()
        elif action == "tell":
            writer.tell()
        elif action == "tell_two":
            writer.tell_two()
        else:
            writer.chat()
    for name in rng.sample(writer.order, questions):
        writer.ask(name)
    return writer.dialogue()


def small_talk(rng: random.Random, lines: int) -> tuple[Turn, ...]:
    """So many lines that tell nothing."""
    writer = _Writer(rng, "eval")
    for _ in range(lines):
        writer.chat()
    return tuple(writer.turns)


def _recall_plan(rng: random.Random, lines: int, facts: int) -> list[str]:
    """What each of the telling turns does, in order."""
    wanted = max(lines - facts, rng.choice((1, 2)))  # turns that tell no new fact
    pairs = min(facts // 2, max(facts + wanted - lines, rng.randrange(3)))
    others = lines - (facts - pairs)
    plan = ["tell_two"] * pairs + ["tell"] * (facts - 2 * pairs)
    plan += ["chat"] * min(others, 1)
    for _ in range(others - 1):
        draw = rng.random()
        few = others <= 3
        plan.append("change" if draw < (0.5 if few else 0.15) else "chat")
        if not few and draw > 0.75:
            plan[-1] = "ask"
    rng.shuffle(plan)
    return plan


def untold_question(rng: random.Random, dialogue: Dialogue) -> Turn:
    """A question on a kind that the dialogue never tells; the reply is `UNKNOWN_REPLY`."""
    untold = [name for name in KINDS if name not in dialogue.facts]
    if not untold:
        raise InputError("This dialogue tells every kind of fact; none is left to ask for.")
    return _Writer(rng, "eval")._question(rng.choice(untold))


def corpus(seed: int, dialogues: int, steps: tuple[int, int] = (4, 16), split: str = "train") -> Iterator[Dialogue]:
    """Training dialogues of a random number of turns within `steps`, both ends included."""
    rng = random.Random(seed)
    for _ in range(dialogues):
        yield training_dialogue(rng, rng.randint(*steps), split)


class Verdict(StrEnum):
    """How a reply to a question is scored."""

    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWN = "unknown"


def _normalised(text: str) -> str:
    """Case folded, without possessive 's and punctuation, words parted by one space."""
    text = re.sub(r"['\u2019]s\b", "", text.casefold())
    return " ".join(re.sub(r"[^\w\s]", " ", re.sub(r"['\u2019]", "", text)).split())


@cache
def _known(name: str) -> frozenset[str]:
    return frozenset(_normalised(value) for value in KINDS[name].values)


def _mentioned(text: str, candidates: frozenset[str]) -> set[str]:
    """The candidates of at most four words that occur in the normalised text as whole words."""
    parts = text.split()
    spans = (" ".join(parts[i : i + n]) for i in range(len(parts)) for n in range(1, 5))
    return {span for span in spans if span in candidates}


def judge(reply: str, kind: str, value: str | None) -> Verdict:
    """Score a reply to a question on `kind` whose right value is `value`, None if never told.

    RIGHT is the value and no other value of the kind; UNKNOWN is "I don't know" though it was told; WRONG is anything
    else. With no value told, RIGHT is "I don't know" without any value.
    """
    text = _normalised(reply)
    right = set() if value is None else {_normalised(value)}
    mentioned = _mentioned(text, _known(kind) | right)
    unknown = not mentioned and re.search(r"\bi (dont|do not) know\b", text) is not None
    if value is None:
        return Verdict.RIGHT if unknown else Verdict.WRONG
    if mentioned == right:
        return Verdict.RIGHT
    return Verdict.UNKNOWN if unknown else Verdict.WRONG
