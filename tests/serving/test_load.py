"""Many clients at a time, over a socket: each one's facts come back to that one alone."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest
from serving_app import running, service, text_of

NAMES = ["Anna", "Bob", "Carla", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas"]
CITIES = ["Oslo", "Rome", "Paris", "Madrid", "Berlin", "Vienna", "Lisbon"]


def talk(address: str, user: int, turns: int, wrong: list[str]) -> None:
    """One client: it tells who it is, says this and that, and asks. Half of them send the whole conversation."""
    name, city, said, last = NAMES[user % len(NAMES)], CITIES[user % len(CITIES)], list[object](), None
    small = [f"I have {number} books." for number in range(turns - 4)]
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer key {user % 4}"}, timeout=120) as web:
        for line in (f"My name is {name}.", f"I live in {city}.", *small, "What is my name?", "Where do I live?"):
            said.append({"role": "user", "content": line})
            body = {"model": "builtin", "input": said if user % 2 else line, "max_output_tokens": 24}
            answer = web.post("/v1/responses", json={**body, "previous_response_id": None if user % 2 else last})
            if answer.status_code != 200:
                wrong.append(answer.text)
                return
            last, reply = answer.json()["id"], text_of(answer.json())
            said += answer.json()["output"]
            others = {*NAMES, *CITIES} - {name, city}
            if any(other in reply for other in others) or (line.startswith("What") and name not in reply):
                wrong.append(f"{user} ({name}, {city}): {line} {reply}")


def crowd(tmp_path: Path, users: int, turns: int) -> list[str]:
    """What went wrong with so many clients at a time."""
    (tmp_path / "keys").write_text("".join(f"key {number}\n" for number in range(4)))
    wrong: list[str] = []
    with running(service("concat", tmp_path / "store"), tmp_path / "keys") as address:
        clients = [threading.Thread(target=talk, args=(address, user, turns, wrong)) for user in range(users)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    return wrong


def test_clients_at_a_time_hear_their_own(tmp_path: Path) -> None:
    assert crowd(tmp_path, 8, 5) == []


@pytest.mark.slow
def test_sixty_four_clients_hear_their_own(tmp_path: Path) -> None:
    assert crowd(tmp_path, 64, 50) == []
