"""The servers behind a Redis URL: where they are, and commands sent to the right ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

from ragopt._imports import require
from ragopt._portal import portal
from ragopt._redis.connections import RedisConnections, Words
from ragopt._redis.url import Address, read_url, text
from ragopt._runtime import ASYNC, SYNC, PerLoop, Runtime
from ragopt.errors import BackendUnavailable, StorageError

T = TypeVar("T")

Command: TypeAlias = tuple[bytes, Words]  # the key that it is about, and its words

SLOTS = 16384
_REDIRECTS = 3  # answers in a row that send a command to another server


class Route(NamedTuple):
    """Which server has what: all masters and, in a cluster, the one of each slot."""

    masters: list[Address]
    slots: list[Address | None]


class RedisServers:
    """Commands to one server, to the master that Sentinel names, or to a cluster.

    The driver's own clients of clusters and Sentinels are not used: the sync one connects in its
    constructor, the async one fails at once when all connections are busy, and a cluster's
    pipeline of 500 look-ups takes twice as long as plain pipelines to its servers, in which one
    body serves both colours and every server is asked at most once.

    Args:
        url: See ``RedisStore``.
        timeout: Seconds to wait for a connection, and for each answer.
        max_connections: Bound on the connections to each server.
    """

    def __init__(self, url: str, *, timeout: float, max_connections: int) -> None:
        self._redis = require("redis", "redis")
        self._slot: Callable[[bytes], int] = require("redis.crc", "redis").key_slot
        place = read_url(url)
        self.name = place.shown
        self.is_cluster = place.kind == "cluster"
        self._place = place
        self._nodes = place.nodes
        # Of one server nothing has to be found out; else None until it is known.
        self._start = Route(place.nodes, []) if place.kind == "server" else None
        self._route = self._start
        self._timeout = timeout
        self._max_connections = max_connections
        self._known: dict[Address, RedisConnections] = {}
        self._known_of_loop: PerLoop[dict[Address, RedisConnections]] = PerLoop(dict)
        self._hopped = False

    async def ask(self, io: Runtime, commands: Sequence[Command]) -> list[Any]:
        """Send commands, each to the server of its key, and return the replies in order.

        Raises:
            BackendUnavailable: A server cannot be reached or did not answer in time.
            StorageError: A server refused a command.
        """
        route = self._route or await self._find(io)
        if not route.slots:
            (master,) = route.masters
            sent = await self._send(io, master, [words for _, words in commands])
            return self._accepted(sent, master)
        replies: list[Any] = [None] * len(commands)
        batches: dict[tuple[Address, bool], list[int]] = {}
        for number, (key, _) in enumerate(commands):
            batches.setdefault((self._owner(route, key), False), []).append(number)
        for _ in range(_REDIRECTS):
            outcomes = await io.gather(
                self._send(io, address, [commands[number][1] for number in numbers], asking)
                for (address, asking), numbers in batches.items()
            )
            moved: dict[tuple[Address, bool], list[int]] = {}
            for ((sender, _), numbers), outcome in zip(batches.items(), outcomes, strict=True):
                for number, reply in zip(numbers, outcome, strict=True):
                    replies[number] = reply
                    if isinstance(reply, self._redis.exceptions.AskError):
                        # ASK is about this one command; MOVED says that the route is old.
                        asking = not isinstance(reply, self._redis.exceptions.MovedError)
                        self._route = self._route if asking else None
                        target = reply.host or sender[0], reply.port
                        moved.setdefault((target, asking), []).append(number)
                    elif isinstance(reply, Exception):
                        raise self._failed(reply, sender) from reply
            if not moved:
                return replies
            batches = moved
        raise self._disagreement()

    async def ask_together(self, io: Runtime, key: bytes, commands: Sequence[Words]) -> list[Any]:
        """Send commands about keys of one slot, all of them to the server that has all of it.

        Where the slot has moved, all are sent again: of a transaction, nothing was done.

        Raises:
            BackendUnavailable: The slot is being moved, so that no server has all of it; or see
                ``ask``.
            StorageError: The server refused a command.
        """
        for _ in range(_REDIRECTS):
            route = self._route or await self._find(io)
            address = self._owner(route, key)
            replies = await self._send(io, address, commands)
            if not any(isinstance(each, self._redis.exceptions.MovedError) for each in replies):
                return self._accepted(replies, address)
            self._route = None
        raise self._disagreement()

    async def ask_server(self, io: Runtime, address: Address, *words: Any) -> Any:
        """Send one command to one server and return its reply."""
        (reply,) = self._accepted(await self._send(io, address, [words]), address)
        return reply

    async def masters(self, io: Runtime) -> list[Address]:
        """Return the servers that hold the keys, none twice; an error if one is missing."""
        route = self._route or await self._find(io)
        if None in route.slots:
            raise self._missing(route.slots.index(None))
        return route.masters

    def slot(self, key: bytes) -> int:
        """Return which of a cluster's slots a key belongs to."""
        return self._slot(key)

    def hop(self, operation: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run an operation of a sync call on the portal's event loop."""
        self._hopped = True
        return portal().call(operation)

    async def close(self, io: Runtime) -> None:
        """Close the connections of sync calls and, in the async colour, the running loop's."""
        if self._hopped:
            await io.cpu(lambda: portal().call(self._close_loop))
        while self._known:
            await self._known.popitem()[1].close(SYNC)
        await io.call(lambda: None, self._close_loop)

    async def _close_loop(self) -> None:
        for connections in (self._known_of_loop.pop() or {}).values():
            await connections.close(ASYNC)

    # -- commands --------------------------------------------------------------------------

    def _owner(self, route: Route, key: bytes) -> Address:
        slot = self._slot(key)
        address = route.slots[slot]
        if address is None:
            raise self._missing(slot)
        return address

    def _missing(self, slot: int) -> BackendUnavailable:
        self._route = None
        return BackendUnavailable(
            f"No server of the Redis cluster {self.name} has slot {slot} of the keys.",
            fix="Bring the missing server back, or give its slots to another one.",
        )

    def _disagreement(self) -> BackendUnavailable:
        return BackendUnavailable(
            f"The servers of the Redis cluster {self.name} do not agree on where a key is.",
            fix="Wait until its slots are moved, and check it with `redis-cli --cluster check`.",
        )

    def _accepted(self, replies: list[Any], address: Address) -> list[Any]:
        for reply in replies:
            if isinstance(reply, Exception):
                raise self._failed(reply, address) from reply
        return replies

    async def _send(
        self,
        io: Runtime,
        address: Address,
        commands: Sequence[Words],
        asking: bool = False,
    ) -> list[Any]:
        """Send commands to one server in one round trip. What it refuses, the reply is an error."""
        known = self._known if io is SYNC else self._known_of_loop.get()
        connections = known.get(address) or await self._first(io, known, address)
        if asking:
            commands = [words for command in commands for words in (("ASKING",), command)]
        try:
            replies = await connections.send(io, commands)
        except (self._redis.RedisError, OSError) as error:
            raise self._failed(error, address) from error
        return replies[1::2] if asking else replies

    # -- finding the servers ---------------------------------------------------------------

    async def _find(self, io: Runtime) -> Route:
        """Ask the nodes in turn, until one answers or the time of one is spent."""
        until = time.monotonic() + self._timeout
        for node in self._nodes:
            try:
                route = await self._ask_node(io, node)
            except StorageError as error:
                problem = error
                # The next call begins with another one, should this one hang.
                self._nodes = [*(other for other in self._nodes if other != node), node]
                if time.monotonic() > until:
                    break
            else:
                if self.is_cluster:
                    self._nodes = list(dict.fromkeys([*self._place.nodes, *route.masters]))
                self._route = route
                return route
        raise problem

    async def _ask_node(self, io: Runtime, node: Address) -> Route:
        if self.is_cluster:
            return _route(await self._ask_once(io, node, {}, "CLUSTER", "SLOTS"), node)
        words = "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._place.service
        try:
            reply = await self._ask_once(io, node, {"db": 0}, *words)
        except StorageError as error:
            if not isinstance(error.__cause__, self._redis.AuthenticationError):
                raise
            # Sentinels are often open where their servers want a password.
            nobody = {"db": 0, "username": None, "password": None}
            reply = await self._ask_once(io, node, nobody, *words)
        if reply is None:
            raise BackendUnavailable(
                f"The Sentinel at {text(node)} knows no master called {self._place.service!r}.",
                fix="Check the name after the hosts of the URL against `sentinel monitor` in the "
                "Sentinel's configuration.",
            )
        host, port = reply
        return Route([(_plain(host), int(port))], [])

    async def _ask_once(
        self, io: Runtime, node: Address, other: dict[str, Any], *words: str
    ) -> Any:
        connections = self._connect(io, node, **other)
        try:
            (reply,) = await connections.send(io, [words])
        except (self._redis.RedisError, OSError) as error:
            raise self._failed(error, node) from error
        finally:
            await connections.close(io)
        if isinstance(reply, Exception):
            raise self._failed(reply, node) from reply
        return reply

    # -- connections -----------------------------------------------------------------------

    async def _first(
        self, io: Runtime, known: dict[Address, RedisConnections], address: Address
    ) -> RedisConnections:
        """Return connections to a server that this colour did not speak to yet."""
        made = known.setdefault(address, self._connect(io, address))
        # A new server: those that are masters no more need no connections.
        masters = self._route.masters if self._route else known
        for other in known.keys() - {address, *masters}:
            if gone := known.pop(other, None):  # unless another thread did
                await gone.close(io)
        return made

    def _connect(self, io: Runtime, address: Address, **other: Any) -> RedisConnections:
        """Return connections of the kind that the URL asks for; they open when they are used."""
        asynchronous = io is not SYNC
        name = "redis.asyncio" if asynchronous else "redis"
        retry = require(f"{name}.retry", "redis").Retry
        newer = hasattr(self._redis, "driver_info")  # an older redis-py has two options for it
        silent = ("driver_info",) if newer else ("lib_name", "lib_version")
        options = {
            "socket_connect_timeout": self._timeout,
            # In async one limit is set around the whole exchange, which takes less time.
            "socket_timeout": None if asynchronous else self._timeout,
            "retry": retry(require("redis.backoff", "redis").NoBackoff(), 0),
            # No greetings, on which a slow server would spend the whole timeout.
            "protocol": 2,
            **dict.fromkeys(silent),
            **self._place.options,
            **other,
        }
        if "path" not in options:
            options["host"], options["port"] = address
        kind = getattr(require(f"{name}.connection", "redis"), self._place.connection)
        return RedisConnections(
            io, partial(kind, **options), most=self._max_connections, timeout=self._timeout
        )

    # -- errors ----------------------------------------------------------------------------

    def _failed(self, error: Exception, address: Address) -> StorageError:
        """Return what to raise, and look for the servers anew if they may have changed."""
        redis, problem = self._redis, str(error) or type(error).__name__
        where = self.name if self._start else text(address)
        if isinstance(error, (redis.AuthenticationError, redis.exceptions.AuthorizationError)):
            return StorageError(
                f"The Redis server at {where} refused the user name or password ({problem}).",
                fix="Check both in the URL; special characters must be percent-encoded.",
            )
        if isinstance(error, redis.OutOfMemoryError):
            return StorageError(
                f"The Redis server at {where} is full and refuses to store more ({problem}).",
                fix="Raise its maxmemory, or set maxmemory-policy to allkeys-lru.",
            )
        gone = redis.ConnectionError, redis.TimeoutError, OSError
        changed = redis.ReadOnlyError, redis.exceptions.ClusterDownError
        if isinstance(error, (*gone, *changed)):
            self._route = self._start
        tls = self._place.connection == "SSLConnection"
        if isinstance(error, (redis.TimeoutError, TimeoutError)):
            speaks = ", speaks TLS" if tls else ""
            return BackendUnavailable(
                f"The Redis server at {where} did not answer within {self._timeout} s.",
                fix=f"Check that it is running{speaks} and not overloaded, or raise timeout.",
            )
        if isinstance(error, gone):
            return BackendUnavailable(
                f"The Redis server at {where} cannot be reached ({problem}).",
                fix=_TLS if tls else _PLAIN,
            )
        if isinstance(error, redis.exceptions.ClusterDownError):
            return BackendUnavailable(
                f"The Redis cluster {self.name} is down for some of the keys ({problem}).",
                fix="Bring the missing servers back, or promote their replicas.",
            )
        moving = redis.exceptions.AskError, redis.exceptions.TryAgainError
        if isinstance(error, redis.exceptions.MovedError):
            return StorageError(
                f"The Redis server at {where} is one of a cluster ({problem}).",
                fix="Add ?cluster=true to the URL.",
            )
        if isinstance(error, moving) or "access a non local key" in problem:
            return BackendUnavailable(
                f"Keys of the Redis cluster {self.name} are being moved from {where} to another "
                f"server ({problem}).",
                fix="Try again when they have been moved.",
            )
        if self.is_cluster and "cluster support disabled" in problem:
            return StorageError(
                f"The Redis server at {where} is in no cluster.",
                fix="Take cluster=true out of the URL, and all hosts but one.",
            )
        if self._place.kind == "sentinel" and "unknown command" in problem:
            return StorageError(
                f"The Redis server at {where} is no Sentinel.",
                fix="Name the Sentinels in the URL, which listen on port 26379 by default.",
            )
        if isinstance(error, redis.ReadOnlyError) and self._place.kind == "sentinel":
            return BackendUnavailable(
                f"The Redis server at {where} is no longer the master.",
                fix="Ask again: the Sentinels will be asked for the new one.",
            )
        if problem.startswith("BUSY"):
            return BackendUnavailable(
                f"The Redis server at {where} is busy with a script ({problem}).",
                fix="Try again; if it lasts, look for what asks so much of it.",
            )
        fixes = (fix for sign, fix in _REFUSALS.items() if sign in problem)
        return StorageError(
            f"The Redis server at {where} refused a command ({problem}).",
            fix=next(fixes, "Its reason stands in the brackets, and perhaps more in its log."),
        )


_REFUSALS = {  # a part of what the server says, and what to do about it
    "permissions": "Check the permissions of the user.",
    "read only": "Name the master in the URL, and not a replica of it.",
    "DB index": "The number that the URL ends in is a database that the server does not have.",
}


_PLAIN = "Check that it is running and that host and port of the URL are right."
_TLS = (
    f"{_PLAIN} ssl_ca_certs must name the file of the authority that signed the server's "
    "certificate, ssl_certfile and ssl_keyfile a certificate that the server accepts, if it wants "
    "one."
)


def _route(reply: Any, node: Address) -> Route:
    """Read the answer to CLUSTER SLOTS: ranges of slots, each with its master and replicas."""
    slots: list[Address | None] = [None] * SLOTS
    for first, last, master, *_ in reply:
        host = _plain(master[0] or "")
        # Without a name it is the one that was asked.
        address = (node[0] if host in ("", "?") else host, int(master[1]))
        slots[first : last + 1] = [address] * (last + 1 - first)
    return Route([address for address in dict.fromkeys(slots) if address], slots)


def _plain(word: bytes | str) -> str:
    return word.decode() if isinstance(word, bytes) else word
