"""Many clients at a time, over a socket: each one's facts come back to that one alone."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from serving_app import running, service, text_of

from ccm.chat.conversation import Conversation
from ccm.engine.sampling import Sampling
from ccm.serving.keys import Keys
from ccm.serving.service import Service
from ccm.serving.transcripts import Transcript

NAMES = ["Anna", "Bob", "Carla", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas"]
CITIES = ["Oslo", "Rome", "Paris", "Madrid", "Berlin", "Vienna", "Lisbon"]
KEYS = 4
Told = tuple[str, list[str]]  # the id of the last response, and all replies


def lines_of(user: int, turns: int) -> list[str]:
    """What a client says: who it is, this and that, two questions, and more."""
    small = [f"I have {number} books." for number in range(turns - 4)]
    told = [f"My name is {NAMES[user % len(NAMES)]}.", f"I live in {CITIES[user % len(CITIES)]}."]
    return [*told, *small[:3], "What is my name?", "Where do I live?", *small[3:]]


def talk(address: str, user: int, turns: int, told: dict[int, Told], wrong: list[str]) -> None:
    """One client holds its conversation. Half of them send the whole of it each time."""
    said, last, replies = list[object](), None, list[str]()
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer key{user % KEYS}"}, timeout=120) as web:
        for line in lines_of(user, turns):
            said.append({"role": "user", "content": line})
            body = {"model": "builtin", "input": said if user % 2 else line, "max_output_tokens": 24}
            answer = web.post("/v1/responses", json={**body, "previous_response_id": None if user % 2 else last})
            if answer.status_code != 200:
                wrong.append(answer.text)
                return
            last = answer.json()["id"]
            replies.append(text_of(answer.json()))
            said += answer.json()["output"]
    told[user] = str(last), replies


def crowd(tmp_path: Path, users: int, turns: int) -> tuple[Service, dict[int, Told]]:
    """A server after so many clients at a time, and what each one was told."""
    (tmp_path / "keys").write_text("".join(f"key{number}\n" for number in range(KEYS)))
    wrong, told = list[str](), dict[int, Told]()
    served = service("concat", tmp_path / "store")
    with running(served, tmp_path / "keys") as address:
        clients = [threading.Thread(target=talk, args=(address, user, turns, told, wrong)) for user in range(users)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert wrong == []
    return served, told


def assert_own_replies(served: Service, user: int, told: Told) -> None:
    """What a client was told until it had asked is what the model says to it alone."""
    sampling = Sampling(max_new_tokens=24)
    alone = Conversation(served.backend.model, served.backend.tokenizer, sampling=sampling)
    for line, reply in zip(lines_of(user, len(told[1])), told[1][:7], strict=False):
        assert alone.answer(line).strip() == reply


def assert_own_memory(tmp_path: Path, served: Service, user: int, told: Told) -> None:
    """The memory of a client is that of its own exchanges, read by nobody else."""
    name, _ = told
    owner = Keys(tmp_path / "keys").owners[user % KEYS]
    turn = served.store.get(owner, name)
    assert turn is not None
    alone = Conversation(served.backend.model, served.backend.tokenizer)
    for part in served.store.chain(owner, turn.id, whole=True):
        for said, reply, ids, room in Transcript.loads(part.text or "").passages:
            alone.hear([*said], reply, ids, room)
    kept = served.memories.get(owner, turn.id).memory
    assert kept.steps == alone.memory.steps
    for one, other in zip((*kept.keys, *kept.values), (*alone.memory.keys, *alone.memory.values), strict=True):
        assert (one - other).abs().max() < 1e-3 * other.abs().max()


def test_clients_at_a_time_hear_their_own(tmp_path: Path) -> None:
    served, told = crowd(tmp_path, 8, 5)
    for user in (0, 3):
        assert_own_replies(served, user, told[user])
        assert_own_memory(tmp_path, served, user, told[user])


@pytest.mark.slow
def test_sixty_four_clients_hear_their_own(tmp_path: Path) -> None:
    served, told = crowd(tmp_path, 64, 50)
    right = sum(NAMES[user % len(NAMES)] in replies[5] for user, (_, replies) in told.items())
    assert right > 0.85 * 64, "the model itself forgets some"
    for user in range(64):
        assert_own_replies(served, user, told[user])
    for user in range(0, 64, 9):
        assert_own_memory(tmp_path, served, user, told[user])
