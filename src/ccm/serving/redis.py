"""The tables of a store in Redis or Valkey, which many servers share.

    ccm:TABLE:ID             a hash: the fields of a row
    ccm:TABLE.FIELD:VALUE    a sorted set: ids of the rows with that value
    ccm:held                 a hash: bytes of each owner

A transaction watches each key that it reads and writes at its end, all at once: where another server wrote one of the
keys meanwhile, it is done again.
"""

from __future__ import annotations

import logging
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    WatchError,
)
from redis.retry import Retry

from ccm.core.errors import CCMError, ConfigError
from ccm.serving.logs import log_event
from ccm.serving.tables import VERSION, Row, StoreError, StoreUnavailableError, T, Table, Transaction

_NAME = "ccm"
_HELD = f"{_NAME}:held"
_VERSION = f"{_NAME}:version"
_SECONDS = 2.0  # that a command may take
_PAUSE = 5.0  # seconds in which a Redis that did not answer is not asked again: all requests would wait for it
_TRIES = 50  # of a transaction whose keys others write
_ENTRY = "id"  # a field that each row has, so that one whose values are all None is there


def _key(table: Table, name: str) -> str:
    return f"{_NAME}:{table.name}:{name}"


def _index(table: Table, name: str, value: Any) -> str:
    return f"{_NAME}:{table.name}.{name}:{value.hex() if isinstance(value, bytes) else value}"


def _encoded(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return repr(int(value) if isinstance(value, bool) else value).encode()


def _decoded(kind: type, value: bytes | None) -> Any:
    if value is None or kind is bytes:
        return value
    if kind is str:
        return value.decode("utf-8", "surrogatepass")
    return kind(float(value)) if kind is float else kind(int(value))


def _why(error: RedisError) -> str:
    """What was wrong, without the command, which names ids."""
    return str(error).rpartition("caused error: ")[2].rstrip(".")


class RedisTransaction:
    """See :class:`ccm.serving.tables.Transaction`.

    What is written waits in the transaction, where later reads find it.
    """

    def __init__(self, base: Redis, watching: Pipeline) -> None:
        self._base, self._watching = base, watching
        self._rows: dict[tuple[str, str], Row | None] = {}  # values that were written; None where the row was deleted
        self._new: set[tuple[str, str]] = set()
        self._added: dict[str, dict[str, float]] = {}  # of an index: ids with their place in the order
        self._removed: dict[str, set[str]] = {}
        self._held: dict[bytes, int] = {}
        self._tables: dict[str, Table] = {}

    def get(self, table: Table, ids: Sequence[str], fields: Sequence[str] = ()) -> list[Row | None]:
        names = fields or [*table.fields]
        keys = {one: (table.name, one) for one in ids}
        asked = [one for one, key in keys.items() if key not in self._new and self._rows.get(key, {}) is not None]
        found: dict[str, Row | None] = {}
        if asked:
            self._watching.watch(*(_key(table, one) for one in asked))
            with self._base.pipeline(transaction=False) as reading:
                for one in asked:
                    reading.hmget(_key(table, one), [_ENTRY, *names])
                answers = reading.execute()
            for one, (there, *values) in zip(asked, answers, strict=True):
                kinds = (table.fields[name] for name in names)
                row = {name: _decoded(kind, value) for name, kind, value in zip(names, kinds, values, strict=True)}
                found[one] = None if there is None else row
        for one in ids:
            written = self._rows.get((table.name, one), {})
            if written is None:
                found[one] = None
            elif (table.name, one) in self._new:
                found[one] = {name: written.get(name) for name in names}
            elif (held := found[one]) is not None:
                found[one] = held | {name: value for name, value in written.items() if name in held}
        return [found[one] for one in ids]

    def find(
        self,
        table: Table,
        name: str,
        values: Sequence[Any],
        *,
        until: float = math.inf,
        most: int | None = None,
        watch: bool = True,
    ) -> list[list[str]]:
        keys = [_index(table, name, value) for value in values]
        if not keys:
            return []
        last = most is not None and most < 0
        begin, end = (until, "-inf") if last else ("-inf", until)
        if watch:
            self._watching.watch(*keys)
        with self._base.pipeline(transaction=False) as reading:
            for key in keys:
                count = -1 if most is None else abs(most) + len(self._removed.get(key, ()))
                reading.zrange(key, begin, end, last, withscores=True, byscore=True, offset=0, num=count)
            answers = reading.execute()
        part = slice(most, None) if last else slice(most)
        return [self._merged(key, answer, until)[part] for key, answer in zip(keys, answers, strict=True)]

    def _merged(self, key: str, answer: Sequence[tuple[bytes, float]], until: float) -> list[str]:
        """Ids in order, with what was written to their index."""
        places = {one.decode(): place for one, place in answer if one.decode() not in self._removed.get(key, ())}
        places |= {one: place for one, place in self._added.get(key, {}).items() if place <= until}
        return sorted(places, key=lambda one: (places[one], one))

    def insert(self, table: Table, name: str, row: Row) -> None:
        self._tables[table.name] = table
        self._rows[table.name, name] = row
        self._new.add((table.name, name))
        self._enter(table, name, row)

    def update(self, table: Table, name: str, values: Row) -> None:
        self._tables[table.name] = table
        if any(one in values for pair in table.indexes.items() for one in pair):
            row = self._indexed(table, name)
            self._leave(table, name, row)
            self._enter(table, name, row | values)
        else:
            self._watching.watch(_key(table, name))  # one that is deleted meanwhile must not come back
        self._rows[table.name, name] = (self._rows.get((table.name, name)) or {}) | values

    def delete(self, table: Table, name: str) -> None:
        self._tables[table.name] = table
        self._leave(table, name, self._indexed(table, name))
        self._rows[table.name, name] = None
        self._new.discard((table.name, name))

    def _indexed(self, table: Table, name: str) -> Row:
        (row,) = self.get(table, [name], [*{one for pair in table.indexes.items() for one in pair}])
        if row is None:
            raise WatchError("another deleted it meanwhile")
        return row

    def _enter(self, table: Table, name: str, row: Row) -> None:
        for one, order in table.indexes.items():
            if row.get(one) is not None:
                self._added.setdefault(_index(table, one, row[one]), {})[name] = row[order]

    def _leave(self, table: Table, name: str, row: Row) -> None:
        for one in table.indexes:
            if row[one] is not None:
                key = _index(table, one, row[one])
                self._added.get(key, {}).pop(name, None)
                self._removed.setdefault(key, set()).add(name)

    def held(self, owner: bytes) -> int:
        return int(self._base.hget(_HELD, owner) or 0) + self._held.get(owner, 0)

    def hold(self, owner: bytes, more: int) -> None:
        self._held[owner] = self._held.get(owner, 0) + more

    def owners(self) -> dict[bytes, int]:
        found = {_encoded(owner): int(held) for owner, held in self._base.hgetall(_HELD).items()}
        return {owner: found.get(owner, 0) + self._held.get(owner, 0) for owner in sorted({*found, *self._held})}

    def write(self) -> None:
        """End the transaction.

        Raises:
            WatchError: when a key that was read was written by another meanwhile.
        """
        write = self._watching
        write.multi()
        for (table, name), row in self._rows.items():
            key = _key(self._tables[table], name)
            if row is None:
                write.delete(key)
                continue
            for one, value in {_ENTRY: name, **row}.items():
                if value is not None:
                    write.hset(key, one, _encoded(value))
            if gone := [one for one, value in row.items() if value is None]:
                write.hdel(key, *gone)
        for key, names in self._removed.items():
            if names:
                write.zrem(key, *names)
        for key, places in self._added.items():
            if places:
                write.zadd(key, places)
        for owner, more in self._held.items():
            write.hincrby(_HELD, owner, more)
        write.execute()


class RedisTables:
    """See :class:`ccm.serving.tables.Tables`.

    Args:
        url: as ``redis://HOST:PORT/DATABASE``, ``rediss://`` or ``unix://``.
        make: whether it may be empty; else nothing is written until a row is.

    Raises:
        ConfigError: when nothing answers there, or what is kept is of another version.
    """

    def __init__(self, url: str, *, make: bool = True) -> None:
        self._silent_until, self._away = 0.0, False
        self.place = re.sub("//.*@", "//", url).partition("?")[0]  # without its password
        try:
            parts = urlsplit(url)
            if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
                raise ValueError(parts.path)  # redis-py would take database 0
            self._base = Redis.from_url(
                url,
                socket_timeout=_SECONDS,
                socket_connect_timeout=_SECONDS,
                retry=Retry(NoBackoff(), 0),  # a transaction whose answer is lost may have been done
            )
            if make and self._base.get(_VERSION) is None:  # a full one can still be read
                self._base.setnx(_VERSION, VERSION)
            version = int(self._base.get(_VERSION) or VERSION)
        except (TypeError, ValueError) as error:  # these name parts of the address, as of a password
            raise ConfigError(
                f"The store {self.place} cannot be opened: its address is not understood. Write "
                "redis://:PASSWORD@HOST:PORT/DATABASE, with %2F for / in a password, and no option that redis-py lacks."
            ) from error
        except AuthenticationError as error:
            raise ConfigError(
                f"The store {self.place} cannot be opened: {_why(error)}. Name user and password, as "
                "redis://USER:PASSWORD@HOST:PORT."
            ) from error
        except (ConnectionError, TimeoutError) as error:
            raise ConfigError(
                f"The store {self.place} cannot be opened: {_why(error)}. Start Redis or Valkey there, or name another "
                "address, as redis://HOST:PORT/DATABASE, or rediss:// where it speaks TLS."
            ) from error
        except RedisError as error:
            raise ConfigError(f"The store {self.place} cannot be opened: {_why(error)}.") from error
        if version != VERSION:
            raise ConfigError(f"The store {self.place} is of version {version}; this ccm reads version {VERSION}.")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
            self._tell(away=False)
        except (ConnectionError, TimeoutError, ReadOnlyError) as error:  # the last while another takes over
            if isinstance(error, TimeoutError):
                self._silent_until = time.monotonic() + _PAUSE
            self._tell(away=True)
            raise StoreUnavailableError("The store cannot be reached. Ask again later.") from error
        except ResponseError as error:
            raise StoreError(f"The store cannot be written: {_why(error)}.") from error

    def _tell(self, *, away: bool) -> None:
        """Log that the store is away, or back, where this is new."""
        if away != self._away:
            told = f"The store {self.place} {'cannot be reached' if away else 'answers again'}"
            log_event("store", told, logging.ERROR if away else logging.WARNING)
        self._away = away

    def run(self, work: Callable[[Transaction], T], *, overwrite: bool = False) -> T:
        """See :meth:`ccm.serving.tables.Tables.run`; what was deleted goes out of Redis' log with :meth:`compact`."""
        if time.monotonic() < self._silent_until:
            raise StoreUnavailableError("The store does not answer. Ask again later.")
        for turn in range(_TRIES):
            with self._told(), self._base.pipeline() as watching:
                transaction = RedisTransaction(self._base, watching)
                try:
                    try:
                        done = work(transaction)
                    except CCMError:  # it counts only where what was read is of one moment
                        RedisTransaction(self._base, watching).write()
                        raise
                    transaction.write()
                except WatchError as error:
                    if isinstance(error.__context__, RedisError):  # the connection was lost, perhaps with the answer
                        raise error.__context__ from None
                    time.sleep(random.random() * 0.001 * min(turn, 20))
                    continue
                return done
        raise StoreUnavailableError("Other servers write the same turns again and again. Ask again later.")

    def compact(self) -> None:
        """Have the log written anew; Redis does it in the background."""
        with self._told():
            try:
                self._base.bgrewriteaof()
            except ResponseError as error:
                if "in progress" not in str(error):
                    raise

    def warnings(self) -> list[str]:
        told: dict[Any, Any] = {}
        with self._told(), suppress(ResponseError):
            told = self._base.config_get("*")
        if not told:
            return [
                f"{self.place} does not tell its settings; turns that were acknowledged outlive a crash where "
                "appendonly is yes and appendfsync is always."
            ]
        found = []
        if told["appendonly"] != "yes":
            found.append(
                f"{self.place} keeps no log (appendonly is {told['appendonly']}): turns that were acknowledged are "
                "lost when it ends. Set appendonly yes and appendfsync always."
            )
        elif told["appendfsync"] != "always":
            found.append(
                f"{self.place} writes its log later (appendfsync is {told['appendfsync']}): turns that were "
                "acknowledged may be lost in a crash. Set appendfsync always."
            )
        if told["maxmemory"] != "0" and told["maxmemory-policy"] != "noeviction":
            found.append(
                f"{self.place} deletes what it has no room for (maxmemory-policy is {told['maxmemory-policy']}). Set "
                "maxmemory-policy noeviction."
            )
        return found

    def close(self) -> None:
        self._base.close()
