"""The server over a socket: recall before and after a restart, and what it adds to a turn.

    python -m benchmarks.serving --dialogues 100
    python -m benchmarks.serving --dialogues 100 --redis

A server process of its own answers; the other figures are taken in this process. Durations are of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx

import ccm
from benchmarks.stores import free_port, new_store
from ccm.chat.conversation import Conversation
from ccm.chat.exchanges import Exchange
from ccm.cli.console import quiet
from ccm.data.builtin.generator import Verdict, judge, recall_dialogue
from ccm.engine.decoder import as_decoder
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling
from ccm.serving.backend import Backend
from ccm.serving.kept import KeptTurn
from ccm.serving.memories import Heard, KeptMemory, Memories
from ccm.serving.prefixes import chain_digests
from ccm.serving.store import Store, open_tables
from ccm.serving.transcripts import Passage, Transcript

STEPS, FACTS, QUESTIONS = 12, 8, 4
OWNER = b"o" * 32


@contextmanager
def server(store: str, *options: str) -> Iterator[httpx.Client]:
    """A client of a server process with options of ``ccm serve``, which ends with the block."""
    port = free_port()
    command = [sys.executable, "-m", "ccm.cli", "serve", *options, "--port", str(port), "--store", store]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
    try:
        while True:
            try:
                client.get("/ready")
                break
            except httpx.ConnectError:
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with status {process.returncode}") from None
                time.sleep(0.1)
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait()


def recall(rule: str, dialogues: int, *, redis: bool) -> dict[str, float]:
    """The share of told facts that come back through ``/v1/responses``, the server restarted before the questions."""
    said = [recall_dialogue(random.Random(f"recall 0 {i}"), STEPS, FACTS, QUESTIONS).turns for i in range(dialogues)]
    last: list[str | None] = [None] * dialogues
    verdicts: dict[str, Counter[Verdict]] = {"before a restart": Counter(), "after a restart": Counter()}

    def ask(client: httpx.Client, number: int, text: str, *, keep: bool = True) -> str:
        body = {"model": "builtin", "input": text, "previous_response_id": last[number], "max_output_tokens": 32}
        answer = client.post("/v1/responses", json={**body, "store": keep}).json()
        last[number] = answer["id"] if keep else last[number]
        return answer["output"][0]["content"][0]["text"]

    with new_store(redis=redis) as place:
        with server(place, "--rule", rule) as client:
            for number, turns in enumerate(said):
                for turn in turns[:-QUESTIONS]:
                    ask(client, number, turn.user)
                for turn in turns[-QUESTIONS:]:
                    reply = ask(client, number, turn.user, keep=False)
                    verdicts["before a restart"][judge(reply, turn.asked or "", turn.value)] += 1
        with server(place, "--rule", rule) as client:
            for number, turns in enumerate(said):
                for turn in turns[-QUESTIONS:]:
                    reply = ask(client, number, turn.user)
                    verdicts["after a restart"][judge(reply, turn.asked or "", turn.value)] += 1
    return {name: counted[Verdict.RIGHT] / counted.total() for name, counted in verdicts.items()}


def first_token(rule: str, rounds: int, *, redis: bool) -> dict[str, float]:
    """Milliseconds to the first piece of a reply after eight turns, in this process and through the server."""
    model, tokenizer = ccm.load("builtin", rule=rule)
    lines = [turn.user for turn in recall_dialogue(random.Random("first token"), STEPS, FACTS, QUESTIONS).turns]
    held, here, there = Conversation(model, tokenizer), [], []
    for line in lines[:8]:
        held.answer(line)
    with new_store(redis=redis) as place, server(place, "--rule", rule) as client:
        last = None
        for line in lines[:8]:
            body = {"model": "builtin", "input": line, "previous_response_id": last}
            last = client.post("/v1/responses", json=body).json()["id"]
        body = {"model": "builtin", "input": lines[8], "previous_response_id": last, "stream": True, "store": False}
        for _ in range(rounds):
            begun = time.perf_counter()
            pieces = held.say(lines[8])
            next(pieces)
            here.append(time.perf_counter() - begun)
            pieces.close()
            begun = time.perf_counter()
            with client.stream("POST", "/v1/responses", json=body) as answer:
                came = [time.perf_counter() for line in answer.iter_lines() if '"response.output_text.delta"' in line]
            there.append(came[0] - begun)
    return {"in process": 1e3 * median(here), "through the server": 1e3 * median(there)}


def whole_turns(adapter: str, rounds: int, *, redis: bool) -> dict[str, float]:
    """Seconds of a turn with a reply of 32 tokens and its compression, after four turns, and what it costs on top."""
    model, tokenizer = ccm.load(adapter=adapter)
    sampling = Sampling(max_new_tokens=32)
    held, here, there, last = Conversation(model, tokenizer, sampling=sampling), [], [], None
    lines = [turn.user for turn in recall_dialogue(random.Random("whole turns"), STEPS, FACTS, QUESTIONS).turns]
    with new_store(redis=redis) as place, server(place, "--adapter", adapter) as client:
        name = client.get("/v1/models").json()["data"][0]["id"]

        def ask(line: str, before: str | None) -> dict[str, Any]:
            body = {"model": name, "input": line, "previous_response_id": before, "max_output_tokens": 32}
            return client.post("/v1/responses", json=body).json()

        for line in lines[:4]:
            held.answer(line)
            last = ask(line, last)["id"]
        begun_with, replies = held.memory, set()
        for _ in range(rounds):
            begun = time.perf_counter()
            replies.add(held.answer(lines[4]))
            here.append(time.perf_counter() - begun)
            held.go_on(begun_with)
            begun = time.perf_counter()
            answer = ask(lines[4], last)
            there.append(time.perf_counter() - begun)
            replies.add(answer["output"][0]["content"][0]["text"])
        if len(set(map(str.strip, replies))) != 1:
            raise RuntimeError(f"the server says other than the process: {replies}")
    ratios = [one / other for one, other in zip(there, here, strict=True)]
    return {"in process": median(here), "through the server": median(there), "ratio": median(ratios)}


def keeping(rule: str, count: int, *, redis: bool) -> dict[str, float]:
    """Milliseconds to find and open one of so many stored memories, to start with them, and to know 200 messages."""
    model, tokenizer = ccm.load("builtin", rule=rule)
    backend, held = Backend(as_decoder(model, "a server"), tokenizer, "builtin"), Conversation(model, tokenizer)
    told: list[tuple[Memory, Transcript]] = []
    for line in recall_dialogue(random.Random("keeping"), STEPS, FACTS, QUESTIONS).turns:
        reply = held.answer(line.user)
        passage = Passage([{"role": "user", "content": line.user}], reply, held.read[-1])
        told.append((held.memory, Transcript("", [], [passage])))
    exchanges: list[Exchange] = [
        ([{"role": "user", "content": f"I like number {i}."}], f"Number {i} is nice.") for i in range(100)
    ]
    with new_store(redis=redis) as place:
        store, names = Store(open_tables(place), backend.origin, seconds=1e9, quota=2**40), []
        for number in range(count // STEPS):
            after, memories = None, Memories(backend, store)
            for step, (memory, transcript) in enumerate(told, 1):
                name = secrets.token_hex(16)
                chain = chain_digests(OWNER, "", exchanges)[-1] if not number and step == STEPS else None
                turn = KeptTurn(name, None, {}, [], "", 1.0, chain)
                packed = backend.pack(memory, after.memory if after else None)
                memories.add(OWNER, [Heard(turn, packed, transcript)], after, memory)
                after = KeptMemory(memory, name)
                names.append(name)
        store.close()
        started = _milliseconds(lambda: _reopened(place, backend.origin), 5)
        store = Store(open_tables(place), backend.origin, seconds=1e9, quota=2**40)
        drawn = random.Random("names")

        def open_one() -> None:
            turn = store.get(OWNER, drawn.choice(names))
            assert turn is not None
            Memories(backend, store).get(OWNER, turn.id)

        def know() -> None:
            assert store.find(OWNER, chain_digests(OWNER, "", exchanges)[1:]) is not None

        figures = {"opening one": _milliseconds(open_one, 100), "200 messages": _milliseconds(know, 20)}
        store.close()
    return {"start": started, **figures}


def long_chain(rule: str, count: int, *, redis: bool) -> dict[str, float]:
    """A conversation of so many turns: milliseconds to keep the last ones and to open the last, and what it takes."""
    model, tokenizer = ccm.load("builtin", rule=rule)
    backend, held = Backend(as_decoder(model, "a server"), tokenizer, "builtin"), Conversation(model, tokenizer)
    with new_store(redis=redis) as place:
        store = Store(open_tables(place), backend.origin, seconds=1e9, quota=2**40)
        memories, after, taken = Memories(backend, store), None, list[float]()
        for number in range(count):
            said, reply = f"I have {number} books.", f"{number} books is a lot!"
            held.hear(said, reply)
            passage = Passage([{"role": "user", "content": said}], reply, held.read[-1], held.rooms[-1])
            turn, transcript = KeptTurn(str(number), None, {}, [], "", 1.0), Transcript("", [], [passage])
            begun = time.perf_counter()
            packed = backend.pack(held.memory, after.memory if after else None)
            memories.add(OWNER, [Heard(turn, packed, transcript)], after, held.memory)
            taken.append(time.perf_counter() - begun)
            after = KeptMemory(held.memory, turn.id)
        last = str(count - 1)
        opened = _milliseconds(lambda: memories.get(OWNER, last), 10)
        parts = store.chain(OWNER, last, whole=True)
        store.close()
    return {
        "keeping one": 1e3 * median(taken[-100:]),
        "opening the last": opened,
        "MB of all": sum(one.size for one in parts) / 2**20,
        "MB of the last memory": held.memory.nbytes / 2**20,
        "memories that were written whole": sum(one.whole for one in parts),
    }


def _reopened(place: str, origin: str) -> None:
    Store(open_tables(place), origin, seconds=1e9, quota=2**40).close()


def _milliseconds(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begun)
    return 1e3 * median(taken)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", default="concat")
    parser.add_argument("--dialogues", type=int, default=100, help="of the recall; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=30, help="of the first token")
    parser.add_argument("--chain", type=int, help="turns of a long conversation: measure that, and nothing else")
    parser.add_argument("--adapter", help="of a real model: measure whole turns on it, and nothing else")
    parser.add_argument("--memories", type=int, default=10_000, help="that are stored")
    parser.add_argument("--redis", action="store_true", help="the store is in a Redis, not in a folder")
    asked = parser.parse_args(arguments)
    redis: bool = asked.redis
    quiet()
    if asked.adapter:
        print(json.dumps({"turns, s": whole_turns(asked.adapter, asked.rounds, redis=redis)}, indent=2))
        return
    if asked.chain:
        figures = long_chain(asked.rule, asked.chain, redis=redis)
        print(json.dumps({"rule": asked.rule, f"{asked.chain} turns": figures}, indent=2))
        return
    found: dict[str, Any] = {"rule": asked.rule}
    if asked.dialogues:
        found["recall"] = recall(asked.rule, asked.dialogues, redis=redis)
    found["first token, ms"] = first_token(asked.rule, asked.rounds, redis=redis)
    found[f"{asked.memories} memories, ms"] = keeping(asked.rule, asked.memories, redis=redis)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
