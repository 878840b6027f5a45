"""Many users at a time over HTTP: what one server and several do under load, and where parts of it fail.

    python -m benchmarks.load crowd --users 64 --turns 50
    python -m benchmarks.load replicas --users 32 --turns 12 [--ray]
    python -m benchmarks.load faults
    python -m benchmarks.load endurance --minutes 60

Servers are processes of their own, on loopback, with the built-in model; CPU seconds are theirs alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
import psutil

import ccm
from benchmarks.stores import DURABLE, free_port, new_store, start_redis
from ccm.chat.conversation import Conversation
from ccm.cli.console import quiet
from ccm.data.builtin.generator import Dialogue, Verdict, judge, recall_dialogue
from ccm.engine.sampling import Sampling

FACTS, QUESTIONS, LONGEST = 8, 4, 32
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}


class Server:
    """A process of ``ccm serve`` that is ready.

    Args:
        place: of its store.
        options: of the command.

    Raises:
        RuntimeError: when it ends at once.
    """

    def __init__(self, place: str, *options: str) -> None:
        port = free_port()
        command = [sys.executable, "-m", "ccm.cli", "serve", "--port", str(port), "--store", place, "--rate", "1000000"]
        self._process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, env=ONE_THREAD)
        self.address = f"http://127.0.0.1:{port}"
        wait_until_ready(self.address, self._process)

    @property
    def seconds(self) -> float:
        """CPU time that it took."""
        return cpu_seconds(psutil.Process(self._process.pid))

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds."""
        return psutil.Process(self._process.pid).memory_info().rss

    def end(self, *, kill: bool = False) -> None:
        """Stop it, or kill it."""
        (self._process.kill if kill else self._process.terminate)()
        self._process.wait()


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process."""
    times = process.cpu_times()
    return times.user + times.system


def wait_until_ready(address: str, process: subprocess.Popen[bytes], seconds: float = 180.0) -> None:
    """Wait for a server.

    Raises:
        RuntimeError: when it ends, or takes too long.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if httpx.get(f"{address}/ready", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        time.sleep(0.2)
    raise RuntimeError(f"the server was not ready within {seconds:.0f} s")


@contextmanager
def servers(count: int, place: str, *options: str) -> Iterator[list[Server]]:
    """So many servers with one store, until the block ends."""
    with ExitStack() as stack:
        running = []
        for _ in range(count):
            running.append(Server(place, *options))
            stack.callback(running[-1].end)
        yield running


@dataclass
class Told:
    """What happened.

    Attributes:
        first: seconds to the first piece of each reply, by turn.
        verdicts: of the answers to questions.
        replies: of each user, in order.
        statuses: of requests that failed.
        kept: ids of the turns that were acknowledged, by user.
    """

    first: dict[int, list[float]] = field(default_factory=dict)
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    replies: dict[int, list[str]] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    kept: dict[int, list[str]] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """How many were acknowledged."""
        return sum(map(len, self.kept.values()))


def dialogue_of(user: int, turns: int) -> Dialogue:
    """What a user says: facts of the user's own, then questions."""
    return recall_dialogue(random.Random(f"load {user}"), turns, FACTS, QUESTIONS)


async def reply_to(client: httpx.AsyncClient, address: str, line: str, last: str | None) -> tuple[str, str, float]:
    """Id and text of a reply that streams, and seconds to its first piece.

    Raises:
        httpx.HTTPError: when there is none.
    """
    body = {"model": "builtin", "input": line, "previous_response_id": last, "max_output_tokens": LONGEST}
    begun, first, name, text = time.perf_counter(), 0.0, None, ""
    async with client.stream("POST", f"{address}/v1/responses", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            await answer.aread()
            answer.raise_for_status()
        async for piece in answer.aiter_lines():
            if not piece.startswith("data: {"):
                continue
            event = json.loads(piece[6:])
            if event["type"] == "response.output_text.delta":
                first = first or time.perf_counter() - begun
                text += event["delta"]
            elif event["type"] == "response.completed":
                name = event["response"]["id"]
            elif event["type"] == "error":
                raise httpx.HTTPStatusError(event["error"]["code"], request=answer.request, response=answer)
    if name is None:
        raise httpx.RemoteProtocolError("the stream ended early")
    return name, text, first


async def converse(client: httpx.AsyncClient, addresses: Sequence[str], user: int, turns: int, told: Told) -> None:
    """One user's conversation, each turn at the next server."""
    last = None
    for number, turn in enumerate(dialogue_of(user, turns).turns, 1):
        try:
            address = addresses[(user + number) % len(addresses)]
            last, text, first = await reply_to(client, address, turn.user, last)
        except httpx.HTTPError as error:
            told.statuses[_name(error)] += 1
            return
        told.first.setdefault(number, []).append(first)
        told.kept.setdefault(user, []).append(last)
        told.replies.setdefault(user, []).append(text)
        if number > turns - QUESTIONS:
            told.verdicts[judge(text, turn.asked or "", turn.value)] += 1


def _name(error: httpx.HTTPError) -> str:
    """How a failure is counted."""
    if isinstance(error, httpx.HTTPStatusError):
        try:
            return f"{error.response.status_code} {error.response.json()['error']['code']}"
        except (httpx.ResponseNotRead, ValueError, KeyError):
            return f"{error.response.status_code} {error}"
    return type(error).__name__


async def crowd(addresses: Sequence[str], users: int, turns: int) -> Told:
    """All users at a time."""
    told = Told()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:
        await asyncio.gather(*(converse(client, addresses, user, turns, told) for user in range(users)))
    return told


def as_alone(told: Told, users: int, turns: int) -> float:
    """The share of the replies to the first users that are what the model says to each alone."""
    model, tokenizer = ccm.load("builtin")
    equal = count = 0
    for user in range(users):
        alone = Conversation(model, tokenizer, sampling=Sampling(max_new_tokens=LONGEST))
        for turn, reply in zip(dialogue_of(user, turns).turns, told.replies.get(user, []), strict=False):
            equal += alone.answer(turn.user).strip() == reply.strip()
            count += 1
    return equal / count


def measure_crowd(users: int, turns: int, *, redis: bool) -> dict[str, Any]:
    """Errors, isolation, recall, and the first token at the last turn beside that at the second."""
    with new_store(redis=redis) as place, servers(1, place) as (server,):
        asyncio.run(crowd([server.address], 4, 8))  # warm
        before, begun = server.seconds, time.perf_counter()
        told = asyncio.run(crowd([server.address], users, turns))
        taken, seconds = time.perf_counter() - begun, server.seconds - before
    early, late = (median(told.first[number]) for number in (2, turns))
    return {
        "turns": told.turns,
        "errors": dict(told.statuses),
        "facts that come back": told.verdicts[Verdict.RIGHT] / told.verdicts.total(),
        "replies as to each alone": as_alone(told, min(users, 8), turns),
        "first token at turn 2, ms": 1e3 * early,
        f"first token at turn {turns}, ms": 1e3 * late,
        "ratio": late / early,
        "turns per CPU second": told.turns / seconds,
        "turns per second": told.turns / taken,
    }


def measure_replicas(users: int, turns: int) -> dict[str, Any]:
    """Turns per CPU second of the servers, with one and with two."""
    found: dict[str, Any] = {}
    for count in (1, 2):
        with new_store(redis=True) as place, servers(count, place) as running:
            addresses = [server.address for server in running]
            asyncio.run(crowd(addresses, 4 * count, 8))  # warm
            before, begun = sum(server.seconds for server in running), time.perf_counter()
            told = asyncio.run(crowd(addresses, users, turns))
            taken, seconds = time.perf_counter() - begun, sum(server.seconds for server in running) - before
        if told.statuses:
            raise RuntimeError(f"requests failed: {told.statuses}")
        found[f"{count} replicas"] = _rates(told.turns, seconds / count, taken)
    return _with_ratios(found)


def _rates(turns: int, seconds: float, taken: float) -> dict[str, float]:
    return {"turns per CPU second of each": turns / seconds, "turns per second": turns / taken}


def _with_ratios(found: dict[str, Any]) -> dict[str, Any]:
    one, two = found["1 replicas"], found["2 replicas"]
    return {**found, "2 over 1": {name: two[name] / one[name] for name in one}}


_RAY_CONFIG = """\
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: ccm
    import_path: ccm.serving.ray:application
    args: {{store: "{place}", rate: 1000000}}
    deployments:
      - name: Replica
        autoscaling_config: {{min_replicas: {count}, max_replicas: {count}}}
        ray_actor_options: {{num_cpus: 1}}
"""


@contextmanager
def ray_serve(count: int, place: str) -> Iterator[str]:
    """The address of Ray Serve with so many replicas, until the block ends."""
    port = free_port()
    with TemporaryDirectory() as folder:
        config = Path(folder) / "serve.yaml"
        config.write_text(_RAY_CONFIG.format(port=port, place=place, count=count), encoding="utf-8")
        program = str(Path(sys.executable).with_name("serve"))
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen([program, "run", str(config)], stdout=log, stderr=log, env=ONE_THREAD)
            try:
                wait_until_ready(f"http://127.0.0.1:{port}", process)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()
                process.wait()
                subprocess.run([str(Path(sys.executable).with_name("ray")), "stop", "--force"], capture_output=True)


def _ray_processes() -> Iterator[tuple[psutil.Process, str]]:
    """What Ray runs, with its title."""
    for process in psutil.process_iter(["name", "cmdline"]):
        title = " ".join(process.info["cmdline"] or [process.info["name"]])
        if "ray" in title and "benchmarks" not in title:
            yield process, title


def _ray_replicas() -> list[psutil.Process]:
    """Replicas that have their model."""
    return [process for process, title in _ray_processes() if title.startswith("ray::ServeReplica")]


def _ray_seconds() -> tuple[float, float]:
    """CPU seconds of the replicas, and of all else that Ray runs."""
    replicas = {process.pid: cpu_seconds(process) for process in _ray_replicas()}
    return sum(replicas.values()), sum(cpu_seconds(one) for one, _ in _ray_processes() if one.pid not in replicas)


def measure_ray(users: int, turns: int) -> dict[str, Any]:
    """The same under Ray Serve, whose proxy chooses the replica of each turn."""
    found: dict[str, Any] = {}
    for count in (1, 2):
        with new_store(redis=True) as place, ray_serve(count, place) as address:
            while len(_ray_replicas()) < count:
                time.sleep(0.5)
            asyncio.run(crowd([address], 4 * count, 8))  # warm
            before, begun = _ray_seconds(), time.perf_counter()
            told = asyncio.run(crowd([address], users, turns))
            taken, after = time.perf_counter() - begun, _ray_seconds()
        if told.statuses:
            raise RuntimeError(f"requests failed: {told.statuses}")
        seconds, others = (late - early for late, early in zip(after, before, strict=True))
        found[f"{count} replicas"] = _rates(told.turns, seconds / count, taken)
        found[f"{count} replicas"]["turns per CPU second of Ray's own processes"] = told.turns / others
    return _with_ratios(found)


async def _insist(client: httpx.AsyncClient, addresses: list[str], user: int, end: float, told: Told) -> None:
    """A user who goes on until the end, at another server and after a pause where one fails."""
    lines, last, number = [turn.user for turn in dialogue_of(user, 60).turns], None, 0
    while time.monotonic() < end:
        try:
            address = addresses[(user + number) % len(addresses)]
            last, _, _ = await reply_to(client, address, lines[len(told.kept.get(user, [])) % len(lines)], last)
            told.kept.setdefault(user, []).append(last)
        except httpx.HTTPError as error:
            told.statuses[_name(error)] += 1
            await asyncio.sleep(0.3)
        number += 1


async def _lost(addresses: Sequence[str], told: Told) -> AsyncIterator[str]:
    """Ids that were acknowledged and are not there, or do not follow the one before."""
    async with httpx.AsyncClient(timeout=60) as client:
        for names in told.kept.values():
            for before, name in zip([None, *names], names, strict=False):
                answer = await client.get(f"{addresses[0]}/v1/responses/{name}")
                if answer.status_code != 200 or answer.json()["previous_response_id"] != before:
                    yield name


def measure_faults(users: int, seconds: float) -> dict[str, Any]:
    """Two servers under load: Redis is killed and comes back, then a server is killed."""
    told, happened, port = Told(), list[dict[str, Any]](), free_port()
    place = f"redis://127.0.0.1:{port}"
    with TemporaryDirectory() as folder, ExitStack() as stack:

        def begin_redis() -> subprocess.Popen[bytes]:
            process = start_redis(Path(folder), port, *DURABLE)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return process

        redis = begin_redis()
        one, other = stack.enter_context(servers(2, place))
        addresses = [one.address, other.address]

        async def load() -> None:
            end = time.monotonic() + 4 * seconds
            async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
                users_at_it = [asyncio.create_task(_insist(client, addresses, u, end, told)) for u in range(users)]
                for event in ("all are there", "Redis is killed", "Redis is back", "a server is killed"):
                    before, failed = told.turns, told.statuses.copy()
                    if event == "Redis is killed":
                        redis.kill()
                        redis.wait()
                    elif event == "Redis is back":
                        begin_redis()
                    elif event == "a server is killed":
                        other.end(kill=True)
                    await asyncio.sleep(seconds)
                    happened.append({"": event, "kept": told.turns - before, "failed": dict(told.statuses - failed)})
                await asyncio.gather(*users_at_it)

        async def lost() -> list[str]:
            return [name async for name in _lost([one.address], told)]

        asyncio.run(load())
        missing = asyncio.run(lost())
    return {"phases": happened, "turns that were acknowledged": told.turns, "lost": len(missing)}


async def _mixed(client: httpx.AsyncClient, address: str, user: int, end: float, told: Told) -> None:
    """A user of both APIs who deletes, compacts and leaves, too."""
    drawn = random.Random(f"mixed {user}")
    while time.monotonic() < end:
        last, messages = None, list[dict[str, str]]()
        for turn in recall_dialogue(drawn, drawn.choice([8, 12, 20]), 6, 2).turns:
            try:
                if user % 2:
                    messages.append({"role": "user", "content": turn.user})
                    body = {"model": "builtin", "messages": messages, "max_tokens": LONGEST}
                    answer = (await client.post(f"{address}/v1/chat/completions", json=body)).raise_for_status().json()
                    messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
                    told.kept.setdefault(user, []).append(answer["id"])
                    continue
                last, _, _ = await reply_to(client, address, turn.user, last)
                told.kept.setdefault(user, []).append(last)
                if drawn.random() < 0.1:
                    body = {"model": "builtin", "previous_response_id": last}
                    (await client.post(f"{address}/v1/responses/compact", json=body)).raise_for_status()
                if drawn.random() < 0.1:
                    body = {"model": "builtin", "input": turn.user, "previous_response_id": last, "stream": True}
                    async with client.stream("POST", f"{address}/v1/responses", json=body) as answer:
                        await anext(answer.aiter_lines())  # and away
            except httpx.HTTPError as error:
                told.statuses[_name(error)] += 1
                break
            await asyncio.sleep(drawn.random())
        if last is not None and drawn.random() < 0.3:
            try:
                gone = await client.delete(f"{address}/v1/responses/{last}", params={"cascade": "true"})
                gone.raise_for_status()
            except httpx.HTTPError as error:
                told.statuses[_name(error)] += 1


def measure_endurance(users: int, minutes: float) -> dict[str, Any]:
    """Memory of a server under mixed load: its median in the second sixth of the time, and in the last."""
    told, held = Told(), list[tuple[float, int]]()
    with new_store(redis=False) as place, servers(1, place, "--cache", "16", "--quota", "64") as (server,):
        begun = time.monotonic()

        async def load() -> None:
            end = begun + 60 * minutes
            async with httpx.AsyncClient(timeout=60) as client:
                at_it = [asyncio.create_task(_mixed(client, server.address, user, end, told)) for user in range(users)]
                while time.monotonic() < end:
                    held.append((time.monotonic() - begun, server.resident))
                    await asyncio.sleep(min(5.0, minutes / 4))
                await asyncio.gather(*at_it)

        asyncio.run(load())
    whole = 60 * minutes
    sixths = [median(size for at, size in held if i <= 6 * at / whole < i + 1) / 2**20 for i in range(6)]
    return {
        "turns": told.turns,
        "errors": dict(told.statuses),
        "MiB of the process, by sixths of the time": sixths,
        "last over second": sixths[5] / sixths[1],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["crowd", "replicas", "faults", "endurance"])
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=15, help="of each phase of the faults")
    parser.add_argument("--redis", action="store_true", help="the store of the crowd is in a Redis, not in a folder")
    parser.add_argument("--ray", action="store_true", help="replicas of Ray Serve, not processes of their own")
    asked = parser.parse_args(arguments)
    quiet()
    figures = {
        "crowd": lambda: measure_crowd(asked.users, asked.turns, redis=asked.redis),
        "replicas": lambda: (measure_ray if asked.ray else measure_replicas)(asked.users, asked.turns),
        "faults": lambda: measure_faults(asked.users, asked.seconds),
        "endurance": lambda: measure_endurance(asked.users, asked.minutes),
    }[asked.what]()
    print(json.dumps({asked.what: figures, "users": asked.users}, indent=2))


if __name__ == "__main__":
    main()
