"""The engine: requests that share a model, each as if it were alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from helpers import assert_close

import ccm
from ccm.chat.conversation import Conversation
from ccm.core.errors import InputError
from ccm.engine.batching import Batch
from ccm.engine.decoder import CCMModel, as_decoder
from ccm.engine.memory import Memory, MemoryCache
from ccm.engine.sampling import Sampling
from ccm.serving.engine import Engine, EngineLimits, Task, elsewhere
from ccm.serving.errors import RequestError

ANNA, BOB = b"a" * 32, b"b" * 32
NAMES = ["Anna", "Bob", "Carla", "David", "Emma", "Felix"]


@cache
def loaded(rule: str, *, recurrent: bool = True) -> tuple[CCMModel, Any]:
    """The built-in model in float64: ties do not decide."""
    model, tokenizer = ccm.load("builtin", rule=rule, recurrent=recurrent)
    return as_decoder(model.double(), "a test"), tokenizer


def lines(number: int) -> list[str]:
    """What a person says; they say more or less, and in other words."""
    name = NAMES[number % len(NAMES)]
    return [
        f"My name is {name}.",
        *[f"I have {i} cats, and so it goes." for i in range(number % 3)],
        "What is my name?",
    ]


def conversation(model: CCMModel, tokenizer: Any, number: int) -> Conversation:
    """Each with another system message and way to choose."""
    sampling = Sampling(0.8 * (number % 2), seed=number, max_new_tokens=5 + 7 * number)
    return Conversation(model, tokenizer, sampling=sampling, system="Be kind. " * (number % 3))


def talking(held: Conversation, number: int) -> Iterator[str]:
    for line in lines(number):
        yield held.answer(line)


class Listener:
    """What becomes of requests."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.events, self.ended = engine, dict[int, list[Any]](), dict[int, Any]()
        self.order: list[int] = []
        self._done, self._expected = threading.Condition(), 0

    def submit(self, work: Any, owner: bytes = ANNA) -> Task:
        number, self._expected = self._expected, self._expected + 1
        self.events[number] = []

        def emit(event: Any) -> None:
            with self._done:
                if event is None or isinstance(event, Exception):
                    self.ended[number] = event
                    self.order.append(number)
                    self._done.notify()
                else:
                    self.events[number].append(event)

        return self.engine.submit(owner, work, emit)

    def wait(self, *numbers: int) -> None:
        """Until those have ended, or all."""
        with self._done:
            assert self._done.wait_for(lambda: self.ended.keys() >= {*(numbers or range(self._expected))}, timeout=60)


@pytest.fixture
def made() -> Iterator[Callable[..., Listener]]:
    """Makes engines, which end with the test."""
    engines = list[Engine]()

    def make(rule: str = "concat", *, recurrent: bool = True, **limits: Any) -> Listener:
        engines.append(Engine(loaded(rule, recurrent=recurrent)[0], EngineLimits(**limits)))
        return Listener(engines[-1])

    yield make
    for engine in engines:
        engine.stop()


@pytest.mark.covers(cases=2)
@pytest.mark.parametrize(
    ("rule", "recurrent", "tokens"),
    [("concat", True, 512), ("concat", False, 12), ("gate", True, 12), ("full", True, 40)],
)
def test_each_request_says_and_remembers_what_it_does_alone(
    made: Callable[..., Listener], rule: str, recurrent: bool, tokens: int
) -> None:
    model, tokenizer = loaded(rule, recurrent=recurrent)
    listener = made(rule, recurrent=recurrent, rows=3, tokens=tokens)
    shared = [conversation(listener.engine.model, tokenizer, number) for number in range(4)]
    for number, held in enumerate(shared):
        listener.submit(talking(held, number))
    listener.wait()
    for number, held in enumerate(shared):
        alone = conversation(model, tokenizer, number)
        assert listener.ended[number] is None
        assert listener.events[number] == [*talking(alone, number)]
        assert_same(held.memory, alone.memory)


def assert_same(one: Memory, other: Memory) -> None:
    assert one.steps == other.steps
    for x, y in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        assert_close(x, y, dtype=torch.float64)


def test_what_is_read_and_compressed_together_takes_fewer_passes(
    made: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, passes = made(rows=6), list[int]()
    read = Batch.read
    monkeypatch.setattr(Batch, "read", lambda batch, ids: passes.append(len(ids)) or read(batch, ids))
    gate = threading.Event()
    listener.submit(_held(gate))  # the others wait meanwhile, and begin together
    for number in range(5):
        listener.submit(talking(conversation(listener.engine.model, loaded("concat")[1], 0), number))
    gate.set()
    listener.wait()
    assert max(passes) == 5
    assert sum(passes) > 2 * len(passes)


def test_a_long_prompt_goes_on_beside_many_short_ones(made: Callable[..., Listener]) -> None:
    listener = made(rows=2, tokens=12)
    model = listener.engine.model

    def reading(times: int, length: int) -> Iterator[str]:
        for _ in range(times):
            memory = model.empty_memory()
            model.reader(memory, MemoryCache(memory))(torch.full((1, length), 5))
        yield "read"

    listener.submit(reading(60, 3))
    listener.submit(reading(1, 100))
    listener.wait()
    assert listener.order == [1, 0]


def _held(gate: threading.Event) -> Iterator[str]:
    """A request that does nothing until the gate opens."""
    assert gate.wait(20)
    yield "done"


def test_a_reply_is_kept_beside_a_long_past_that_is_taken_in(made: Callable[..., Listener]) -> None:
    listener, tokenizer = made(), loaded("concat")[1]
    model, begun = listener.engine.model, threading.Event()
    past = Conversation(model, tokenizer)

    def hearing() -> Iterator[int]:
        for number in range(200):
            past.hear([{"role": "user", "content": f"I have {number} cats."}], "Good.")
            begun.set()
            yield number

    task = listener.submit(hearing())
    assert begun.wait(60)
    listener.submit(talking(conversation(model, tokenizer, 0), 0), BOB)
    listener.wait(1)
    assert len(listener.events[0]) < 200
    listener.engine.cancel(task)
    listener.wait()


def test_a_request_that_fails_fails_alone(made: Callable[..., Listener]) -> None:
    listener, tokenizer = made(), loaded("concat")[1]
    good = conversation(listener.engine.model, tokenizer, 0)

    def bad() -> Iterator[str]:
        yield "begun"
        raise InputError("it cannot be read")

    listener.submit(bad())
    listener.submit(talking(good, 0))
    listener.wait()
    assert str(listener.ended[0]) == "it cannot be read"
    assert listener.ended[1] is None
    assert len(listener.events[1]) == 2


def test_a_pass_that_fails_is_told_to_its_requests_and_the_engine_goes_on(
    made: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, tokenizer = made(), loaded("concat")[1]

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(Batch, "read", fail)
        listener.submit(talking(conversation(listener.engine.model, tokenizer, 0), 0))
        listener.wait()
    assert isinstance(listener.ended[0], RuntimeError)
    listener.submit(talking(conversation(listener.engine.model, tokenizer, 0), 0))
    listener.wait()
    assert listener.ended[1] is None


def test_requests_of_one_key_do_not_starve_another(made: Callable[..., Listener]) -> None:
    listener, gate = made(rows=1), threading.Event()
    listener.submit(_held(gate))
    for _ in range(20):
        listener.submit(_short())
    listener.submit(_short(), BOB)
    gate.set()
    listener.wait()
    assert listener.order.index(21) <= 2


def _short() -> Iterator[str]:
    yield "done"


def test_a_key_has_so_many_requests_that_wait(made: Callable[..., Listener]) -> None:
    listener, gate = made(rows=1, waiting=2), threading.Event()
    listener.submit(_held(gate))
    while not listener.engine._active:
        time.sleep(0.01)
    listener.submit(_short())
    listener.submit(_short())
    with pytest.raises(RequestError, match="2 requests of this key wait"):
        listener.engine.submit(ANNA, _short(), print)
    listener.submit(_short(), BOB)
    gate.set()
    listener.wait()


def test_a_request_that_waits_too_long_is_told_so(made: Callable[..., Listener]) -> None:
    listener, gate = made(rows=1, seconds=0.05), threading.Event()
    listener.submit(_held(gate))
    while not listener.engine._active:
        time.sleep(0.01)
    listener.submit(_short())
    time.sleep(0.1)
    gate.set()
    listener.wait()
    assert (listener.ended[1].status, listener.ended[1].code) == (503, "busy")


def test_requests_end_in_time_while_all_rows_wait_for_a_disk(made: Callable[..., Listener]) -> None:
    listener, gate = made(rows=1, waiting=1, seconds=0.2), threading.Event()

    def waiting() -> Iterator[str]:
        yield str(elsewhere(lambda: gate.wait(60)))

    listener.submit(waiting())
    while not (listener.engine._active and listener.engine._active[0].away):
        time.sleep(0.01)
    listener.engine.cancel(listener.submit(_short(), BOB))
    listener.submit(_short(), BOB)  # the one before takes no place any more
    listener.wait(1, 2)
    assert listener.ended[1] is None
    assert (listener.ended[2].status, listener.ended[2].code) == (503, "busy")
    gate.set()
    listener.wait()


def test_an_engine_that_fails_tells_all_its_requests(
    made: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener, tokenizer = made(rows=1), loaded("concat")[1]
    gate, closed = threading.Event(), list[str]()

    def fail(_: Engine) -> None:
        raise RuntimeError("out of memory")

    def talk() -> Iterator[str]:
        try:
            gate.wait(60)
            yield from talking(conversation(listener.engine.model, tokenizer, 0), 0)
        finally:
            closed.append("closed")

    monkeypatch.setattr(Engine, "_read_prompts", fail)
    listener.submit(talk())
    listener.submit(_short())
    gate.set()
    listener.wait()
    assert [(error.status, error.code) for error in listener.ended.values()] == [(503, "failed")] * 2
    assert closed == ["closed"]
    assert listener.engine.failed
    assert not listener.engine.ready
    with pytest.raises(RequestError, match="about to stop"):
        listener.submit(_short())


def test_a_thread_that_cannot_be_started_fails_one_request(
    made: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = made()

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    def waiting() -> Iterator[str]:
        yield elsewhere(lambda: "answered")

    with monkeypatch.context() as broken:
        broken.setattr(listener.engine._others, "submit", fail)
        listener.submit(waiting())
        listener.wait()
    listener.submit(waiting())
    listener.wait()
    assert isinstance(listener.ended[0], RuntimeError)
    assert listener.events[1] == ["answered"]


def test_a_cancelled_request_ends_and_others_go_on(made: Callable[..., Listener]) -> None:
    listener, tokenizer = made(), loaded("concat")[1]
    held = conversation(listener.engine.model, tokenizer, 0)
    begun, closed = threading.Event(), list[str]()

    def endless() -> Iterator[str]:
        try:
            while True:
                yield held.answer("Hello!")
                begun.set()
        finally:
            closed.append("closed")

    task = listener.submit(endless())
    assert begun.wait(20)
    listener.engine.cancel(task)
    listener.submit(talking(conversation(listener.engine.model, tokenizer, 1), 1))
    listener.wait()
    assert closed == ["closed"]
    assert listener.ended == {0: None, 1: None}


def test_others_go_on_while_a_request_waits_for_a_disk(made: Callable[..., Listener]) -> None:
    listener, tokenizer = made(rows=2), loaded("concat")[1]
    gate = threading.Event()

    def waiting() -> Iterator[str]:
        yield elsewhere(lambda: "answered" if gate.wait(60) else "given up")

    listener.submit(waiting())
    listener.submit(talking(conversation(listener.engine.model, tokenizer, 0), 0))
    listener.submit(talking(conversation(listener.engine.model, tokenizer, 1), 1))
    while len(listener.ended) < 2:
        time.sleep(0.01)
    assert listener.ended == {1: None, 2: None}
    gate.set()
    listener.wait()
    assert listener.events[0] == ["answered"]


def test_an_error_of_another_thread_is_raised_where_it_was_waited_for(made: Callable[..., Listener]) -> None:
    listener = made()

    def fail() -> None:
        raise InputError("the disk is full")

    def mending() -> Iterator[str]:
        with pytest.raises(InputError):
            elsewhere(fail)
        yield "mended"
        elsewhere(fail)

    listener.submit(mending())
    listener.wait()
    assert listener.events[0] == ["mended"]
    assert str(listener.ended[0]) == "the disk is full"


def test_what_another_thread_does_ends_before_its_request_is_let_go_of(made: Callable[..., Listener]) -> None:
    listener, gate, begun, done = made(), threading.Event(), threading.Event(), list[str]()

    def write() -> None:
        begun.set()
        gate.wait(60)
        done.append("written")

    def writing() -> Iterator[str]:
        try:
            yield str(elsewhere(write))
        finally:
            done.append("let go of")

    task = listener.submit(writing())
    assert begun.wait(60)
    listener.engine.cancel(task)
    listener.submit(_short())
    while 1 not in listener.ended:
        time.sleep(0.01)
    assert done == []
    gate.set()
    listener.engine.stop()
    assert done == ["written", "let go of"]
    assert listener.events[0] == []


def test_an_engine_that_stops_ends_what_it_has_and_takes_no_more(made: Callable[..., Listener]) -> None:
    listener, tokenizer = made(rows=1), loaded("concat")[1]
    for number in range(3):
        listener.submit(talking(conversation(listener.engine.model, tokenizer, number), number))
    listener.engine.stop()
    assert listener.ended == {0: None, 1: None, 2: None}
    assert not listener.engine.ready
    with pytest.raises(RequestError, match="about to stop"):
        listener.submit(_short())
