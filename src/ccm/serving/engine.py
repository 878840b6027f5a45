"""The engine: requests that use one model at a time, each written as if it were alone.

    request   a generator in a greenlet: it asks for a read or a compression, and waits  -+
    request   ...                                                                         +->  a pass for all that wait
    request   ...                                                                        -+

One thread runs all of it. Between two tokens of those who generate there is at most one pass for prompts, and one for
compressions; long texts are read in bounded passes. Keys take turns: many requests of one do not hold up another. What
waits for a disk or a network is done in threads of its own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

from ccm.core.processes import get_logger
from ccm.engine.batching import Batch, compress_together
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory, MemoryCache
from ccm.engine.sampling import Read
from ccm.serving.errors import RequestError

_log = get_logger(__name__)
_AGAIN = {"Retry-After": "5"}
Emit = Callable[[Any], None]
T = TypeVar("T")


@dataclass(frozen=True)
class EngineLimits:
    """How much an engine takes on.

    Attributes:
        rows: most requests that use the model together.
        waiting: most requests of one key that wait.
        seconds: that a request waits at most.
        tokens: most tokens of a pass over prompts, or over steps that are compressed, padding included.
        hold: most passes of those who generate that a step waits for others, to be compressed with them.
    """

    rows: int = 16
    waiting: int = 256
    seconds: float = 60.0
    tokens: int = 512
    hold: int = 3


@dataclass(frozen=True, eq=False)
class Reading:
    """Text to be read into a cache; what is wanted are the logits (1, V) of the next token."""

    cache: MemoryCache
    ids: list[int]
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, eq=False)
class Compressing:
    """A step to be compressed; what is wanted is the memory."""

    memory: Memory
    step: list[int]
    cache: MemoryCache | None
    since: float = field(default_factory=time.monotonic)

    @property
    def rest(self) -> int:
        """Tokens of the step that are not read yet."""
        known = self.cache is not None and self.cache.memory is self.memory
        return len(self.step) - (self.cache.read.shape[1] if known and self.cache is not None else 0)


@dataclass(eq=False)
class Calling:
    """Work that does not use the model; what is wanted is what it returns."""

    work: Callable[[], Any]
    found: Future[Any] | None = None  # once it has begun


class SharedModel(CCMModel):
    """A model that several requests use together: in an engine, reading and compressing wait for the next pass."""

    _tokens: int

    @classmethod
    def of(cls, model: CCMModel, tokens: int) -> Self:
        """The same model, with the same weights; passes over long texts have at most ``tokens`` tokens."""
        shared = cls.__new__(cls)
        shared.__dict__.update(model.__dict__)
        shared._tokens = tokens
        return shared

    def reader(self, memory: Memory, cache: MemoryCache) -> Read:
        if not _inside():
            return super().reader(memory, cache)

        def read(ids: Tensor) -> Tensor:
            (row,) = ids.tolist()
            return _ask(Reading(cache, self._read_long(cache, row)))

        return read

    def compress(
        self, memory: Memory, ids: Tensor, mask: Tensor | None = None, cache: MemoryCache | None = None
    ) -> Memory:
        if not _inside():
            return super().compress(memory, ids, mask, cache)
        (step,) = ids.tolist()
        if self.rule.compresses == "step" and not self.config.recurrent:
            cache = None  # the step is read anew, in isolation
        elif cache is None and len(step) > self._tokens:
            cache = MemoryCache(memory)
            self._read_long(cache, step)
        return _ask(Compressing(memory, step, cache))

    def _read_long(self, cache: MemoryCache, ids: list[int]) -> list[int]:
        """Read as many whole passes of a long text as there are; returns the rest."""
        while len(ids) > self._tokens:
            _ask(Reading(cache, ids[: self._tokens]))
            ids = ids[self._tokens :]
        return ids


@dataclass(eq=False)
class Task:
    """A request on its way.

    Attributes:
        owner: whose it is.
        work: what it does, event by event.
        emit: takes each event, then None, or the error that ended it.
        since: seconds of the clock at which it began to wait.
        run: the greenlet in which it runs; None while it waits for its turn.
        job: what it asks of the model at the moment.
        cancelled: whether nobody wants its events any more.
    """

    owner: bytes
    work: Generator[Any, None, None]
    emit: Emit
    since: float = field(default_factory=time.monotonic)
    run: greenlet | None = None
    job: Any = None  # Reading, Compressing, Calling, or None
    cancelled: bool = False

    @property
    def away(self) -> bool:
        """Whether it waits for what another thread does."""
        return isinstance(self.job, Calling) and self.job.found is not None and not self.job.found.done()


class Engine:
    """Runs requests together on one model.

    Args:
        model: the model.
        limits: how much is taken on.

    Attributes:
        model: the model for the conversations of requests.
    """

    def __init__(self, model: CCMModel, limits: EngineLimits | None = None) -> None:
        self._limits = limits or EngineLimits()
        self._plain, self.model = model, SharedModel.of(model, self._limits.tokens)
        self._batch = Batch(model)
        self._held = 0  # passes since steps wait for others
        self._queues: OrderedDict[bytes, deque[Task]] = OrderedDict()
        self._active: list[Task] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._others = ThreadPoolExecutor(self._limits.rows, "ccm store")
        self._stopping = self._failed = False

    def submit(self, owner: bytes, work: Generator[Any, None, None], emit: Emit) -> Task:
        """Let a request run once it is its turn.

        Args:
            owner: whose it is.
            work: yields events; what it asks of :attr:`model` is done with that of others.
            emit: takes each event in the engine's thread, then None, or the error that ended the request.

        Raises:
            RequestError: 429 where too many requests of the owner wait, 503 where the engine stops.
        """
        task = Task(owner, work, emit)
        with self._changed:
            if self._stopping:
                raise RequestError(
                    "This server is about to stop; ask again later.", status=503, code="stopping", headers=_AGAIN
                )
            queue = self._queues.setdefault(owner, deque())
            waiting = sum(not other.cancelled for other in queue)
            if waiting >= self._limits.waiting:
                raise RequestError(
                    f"{waiting} requests of this key wait already; ask again when one is answered.",
                    status=429,
                    code="too_many_requests",
                )
            queue.append(task)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="ccm engine", daemon=True)
                self._thread.start()
            self._changed.notify()
        return task

    def cancel(self, task: Task) -> None:
        """Let go of a request before its next pass; one that has ended is left alone.

        What another thread does for it ends before.
        """
        with self._changed:
            task.cancelled = True
            self._changed.notify()

    def stop(self) -> None:
        """Take on no more, and return once all that runs or waits has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._others.shutdown()

    @property
    def ready(self) -> bool:
        """Whether requests are taken on."""
        return not self._stopping and (self._thread is None or self._thread.is_alive())

    @property
    def failed(self) -> bool:
        """Whether the engine ended without being stopped; then the process has to begin anew."""
        return self._failed

    @torch.no_grad()
    def _work(self) -> None:
        try:
            self._serve()
        except Exception:  # of the engine itself, such as no memory left: no request may wait for ever
            _log.exception("The engine has failed; this server has to be started anew.")
            with self._changed:
                self._failed = self._stopping = True
                left = [*self._active, *(task for queue in self._queues.values() for task in queue)]
                self._active, self._queues = [], OrderedDict()
            failure = RequestError(
                "This server has failed; ask again later.", status=503, code="failed", headers=_AGAIN
            )
            for task in left:
                if task.run is None:  # not begun
                    task.work.close()
                    task.emit(failure)
                    continue
                for error in (failure, GreenletExit()):  # the second where it goes on after the first
                    if not task.run.dead:
                        task.run.throw(error)

    def _serve(self) -> None:
        while self._admit():
            for task in [task for task in self._active if task.cancelled and not task.away]:
                self._go_on(task, error=GreenletExit())
            self._take_back()
            self._generate()
            self._read_prompts()
            self._compress()

    def _admit(self) -> bool:
        """Begin requests as far as there are rows for them, key by key; wait where there is nothing to do.

        Returns:
            False once the engine is to stop, and nothing is left.
        """
        begun = list[Task]()
        with self._changed:
            while not (dropped := self._drop()) and not self._can_go_on():
                if self._stopping and not self._active and not self._queues:
                    return False
                self._changed.wait(self._patience())
            while self._queues and len(self._active) + len(begun) < self._limits.rows:
                owner, queue = self._queues.popitem(last=False)
                begun.append(queue.popleft())
                if queue:
                    self._queues[owner] = queue  # behind the other keys
            self._active += begun
        for task in dropped:
            task.work.close()
            waited = f"The server was busy for {self._limits.seconds:g} seconds; ask again later."
            task.emit(None if task.cancelled else RequestError(waited, status=503, code="busy", headers=_AGAIN))
        for task in begun:
            task.run = _Run(partial(_run, task))
            self._go_on(task)
        return True

    def _drop(self) -> list[Task]:
        """Take the requests out of the queues that nobody wants any more, or that have waited too long."""
        late = time.monotonic() - self._limits.seconds
        dropped = list[Task]()
        for owner, queue in [*self._queues.items()]:
            gone = [task for task in queue if task.cancelled or task.since <= late]
            if gone:
                dropped += gone
                self._queues[owner] = deque(task for task in queue if task not in gone)
            if not self._queues[owner]:
                del self._queues[owner]
        return dropped

    def _patience(self) -> float | None:
        """Seconds until a request has waited too long; None where none waits."""
        first = min((queue[0].since for queue in self._queues.values()), default=None)
        return None if first is None else max(first + self._limits.seconds - time.monotonic(), 0.0)

    def _can_go_on(self) -> bool:
        """Whether a request can go on, or begin."""
        room = len(self._active) < self._limits.rows
        return not all(task.away for task in self._active) or (room and bool(self._queues))

    def _go_on(self, task: Task, found: Any = None, error: BaseException | None = None) -> None:
        """Let a request go on with what it asked for, or an error, until it asks for the next, or ends."""
        assert task.run is not None
        task.job = task.run.throw(error) if error is not None else task.run.switch(found)
        if task.run.dead:
            with self._changed:
                self._active = [other for other in self._active if other is not task]
        elif isinstance(task.job, Calling):
            try:
                task.job.found = self._others.submit(task.job.work)
            except RuntimeError as error:  # no thread can be started
                task.job.found = Future()
                task.job.found.set_exception(error)
            task.job.found.add_done_callback(self._wake)

    def _wake(self, _: Future[Any]) -> None:
        with self._changed:
            self._changed.notify()

    def _take_back(self) -> None:
        """Let requests go on for which another thread is done."""
        for task in [task for task in self._active if isinstance(task.job, Calling) and not task.away]:
            error = task.job.found.exception()
            self._go_on(task, None if error is not None else task.job.found.result(), error)

    def _generate(self) -> None:
        """One token of each row."""
        reading = {id(task.job.cache): task for task in self._active if _reads_a_token(task.job)}
        try:
            self._batch.leave([cache for cache in self._batch.rows if id(cache) not in reading])
            if not self._batch.rows:
                return
            rows = [reading[id(cache)] for cache in self._batch.rows]  # leaving changed their order
            logits = self._batch.read([task.job.ids[0] for task in rows])
        except Exception as error:  # whatever it was, it is of these requests
            failed = [reading[id(cache)] for cache in self._batch.rows if id(cache) in reading]
            self._batch = Batch(self._plain)
            self._fail(failed, error)
        else:
            self._succeed(rows, logits.split(1))

    def _read_prompts(self) -> None:
        """One pass over prompts, as many as it may hold, or over a part of a long one."""
        rows = self._batch.rows
        asked = [task for task in self._active if isinstance(task.job, Reading) and task.job.cache not in rows]
        if not asked:
            return
        waiting = sorted(asked, key=lambda task: task.job.since)  # a long one waits for its next part as others do
        new = [task for task in waiting if not task.job.cache.read.shape[1]]
        if new and new[0] is waiting[0]:
            self._try(self._fitting(new, lambda job: len(job.ids)), self._begin)
        else:
            self._try(waiting[:1], self._read_on)

    def _begin(self, jobs: Sequence[Reading]) -> Sequence[Tensor]:
        return self._batch.begin([job.cache for job in jobs], [job.ids for job in jobs]).split(1)

    def _read_on(self, jobs: Sequence[Reading]) -> list[Tensor]:
        (job,) = jobs
        ids = torch.tensor([job.ids])
        logits = self._plain.read(job.cache.memory, ids, cache=job.cache, last=True)[:, -1]
        self._batch.join(job.cache)
        return [logits]

    def _compress(self) -> None:
        """One pass over steps that are to be compressed, as many as it may hold."""
        rows = self._batch.rows
        asked = [task for task in self._active if isinstance(task.job, Compressing) and task.job.cache not in rows]
        waiting = sorted(asked, key=lambda task: task.job.since)  # one of many steps waits for its next as others do
        if not waiting or (rows and self._held < self._limits.hold):
            self._held += bool(waiting)
            return
        self._held = 0
        known = waiting[0].job.rest < len(waiting[0].job.step)
        alike = [task for task in waiting if (task.job.rest < len(task.job.step)) == known]
        self._try(
            self._fitting(alike, lambda job: job.rest + self._plain.config.n_tok),
            lambda jobs: compress_together(
                self._plain, [job.memory for job in jobs], [job.step for job in jobs], [job.cache for job in jobs]
            ),
        )

    def _fitting(self, tasks: Sequence[Task], length: Callable[[Any], int]) -> list[Task]:
        """The first tasks whose jobs one pass may hold, and one at least."""
        for count in range(len(tasks), 1, -1):
            if count * max(length(task.job) for task in tasks[:count]) <= self._limits.tokens:
                return [*tasks[:count]]
        return [*tasks[:1]]

    def _try(self, tasks: Sequence[Task], work: Callable[[Any], Sequence[Any]]) -> None:
        """Do the jobs of tasks together; where this is refused, do each alone, so that it fails alone."""
        try:
            found = work([task.job for task in tasks])
        except Exception as error:  # whatever it was, it is of these requests
            if len(tasks) == 1:
                self._fail(tasks, error)
                return
            for task in tasks:
                self._try([task], work)
        else:
            self._succeed(tasks, found)

    def _succeed(self, tasks: Sequence[Task], found: Sequence[Tensor | Memory]) -> None:
        for task, one in zip(tasks, found, strict=True):
            self._go_on(task, one)

    def _fail(self, tasks: Sequence[Task], error: Exception) -> None:
        for task in tasks:
            self._go_on(task, error=error)


class _Run(greenlet):
    """A request that runs in an engine."""


def _inside() -> bool:
    return isinstance(getcurrent(), _Run)


def elsewhere(work: Callable[[], T]) -> T:
    """Do work that waits for a disk or a network while other requests go on; outside of an engine, do it here."""
    return _ask(Calling(work)) if _inside() else work()


def _ask(job: Reading | Compressing | Calling) -> Any:
    """Wait until the engine has done a job."""
    parent = getcurrent().parent
    assert parent is not None
    return parent.switch(job)


def _run(task: Task, _: None) -> None:
    """All of a request."""
    end: Exception | None = None
    try:
        for event in task.work:
            task.emit(event)
    except GreenletExit:  # nobody wants more of it
        pass
    except Exception as error:  # whatever it was, it is of this request: its client hears of it, and others go on
        end = error
    finally:
        task.work.close()
    task.emit(end)


def _reads_a_token(job: Reading | Compressing | Calling | None) -> bool:
    return isinstance(job, Reading) and len(job.ids) == 1
