"""Many clients at a time, over a socket: each one's facts come back to that one alone."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from serving_app import running, service, text_of

from ccm.chat.conversation import Conversation
from ccm.serving.keys import Keys
from ccm.serving.service import Service
from ccm.serving.transcripts import Transcript

NAMES = ["Anna", "Bob", "Carla", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas"]
CITIES = ["Oslo", "Rome", "Paris", "Madrid", "Berlin", "Vienna", "Lisbon"]
KEYS = 4


def talk(address: str, user: int, turns: int, told: dict[int, str], wrong: list[str]) -> None:
    """One client tells who it is, says this and that, asks, and goes on. Half of them send the whole conversation."""
    name, city, said, last = NAMES[user % len(NAMES)], CITIES[user % len(CITIES)], list[object](), None
    small = [f"I have {number} books." for number in range(turns - 4)]
    asked = ["What is my name?", "Where do I live?"]
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer key{user % KEYS}"}, timeout=120) as web:
        for line in (f"My name is {name}.", f"I live in {city}.", *small[:3], *asked, *small[3:]):
            said.append({"role": "user", "content": line})
            body = {"model": "builtin", "input": said if user % 2 else line, "max_output_tokens": 24}
            answer = web.post("/v1/responses", json={**body, "previous_response_id": None if user % 2 else last})
            if answer.status_code != 200:
                wrong.append(answer.text)
                return
            last, reply = answer.json()["id"], text_of(answer.json())
            said += answer.json()["output"]
            if line == asked[0] and name not in reply:
                wrong.append(f"{user} ({name}, {city}): {line} {reply}")
    told[user] = str(last)


def crowd(tmp_path: Path, users: int, turns: int) -> tuple[Service, dict[int, str]]:
    """A server after so many clients at a time, and the id of each one's last response."""
    (tmp_path / "keys").write_text("".join(f"key{number}\n" for number in range(KEYS)))
    wrong, told = list[str](), dict[int, str]()
    served = service("concat", tmp_path / "store")
    with running(served, tmp_path / "keys") as address:
        clients = [threading.Thread(target=talk, args=(address, user, turns, told, wrong)) for user in range(users)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert wrong == []
    return served, told


def assert_own_memory(tmp_path: Path, served: Service, user: int, name: str) -> None:
    """The memory of a client is that of its own exchanges, read by nobody else."""
    owner = Keys(tmp_path / "keys").owners[user % KEYS]
    turn = served.store.get(owner, name)
    assert turn is not None
    alone = Conversation(served.backend.model, served.backend.tokenizer)
    for part in served.store.chain(owner, turn.part, whole=True):
        for said, reply, ids, room in Transcript.loads(part.text or "").passages:
            alone.hear([*said], reply, ids, room)
    kept = served.memories.get(owner, turn.part).memory
    assert kept.steps == alone.memory.steps
    for one, other in zip((*kept.keys, *kept.values), (*alone.memory.keys, *alone.memory.values), strict=True):
        assert (one - other).abs().max() < 1e-3 * other.abs().max()


def test_clients_at_a_time_hear_their_own(tmp_path: Path) -> None:
    served, told = crowd(tmp_path, 8, 5)
    for user in (0, 3):
        assert_own_memory(tmp_path, served, user, told[user])


@pytest.mark.slow
def test_sixty_four_clients_hear_their_own(tmp_path: Path) -> None:
    served, told = crowd(tmp_path, 64, 50)
    for user in range(0, 64, 9):
        assert_own_memory(tmp_path, served, user, told[user])
