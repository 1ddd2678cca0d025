"""What Redis servers say about themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class RedisServerStats:
    """Figures of one server, or of all masters of a cluster added up.

    They are the servers' own (the command INFO), so they cover every program that uses them, and
    count since the servers started or ``CONFIG RESETSTAT``.

    Args:
        version: Version of the server; several, separated by commas, where they differ.
        servers: How many were asked.
        connected_clients: Connections open now, replicas left out.
        commands_processed: Commands so far.
        commands_per_second: Commands a second, right now.
        keyspace_hits: Look-ups of keys that were there, so far.
        keyspace_misses: Look-ups of keys that were not there, so far.
        evicted_keys: Keys that went before their time since the memory was full, so far.
        expired_keys: Keys whose time was over, so far.
        used_memory: Bytes that the servers have allocated.
        max_memory: Bound on ``used_memory`` in bytes; 0 where a server has none.
        memory_policy: What goes first at the bound, such as ``allkeys-lru``; several, separated
            by commas, where they differ.
    """

    version: str
    servers: int
    connected_clients: int
    commands_processed: int
    commands_per_second: int
    keyspace_hits: int
    keyspace_misses: int
    evicted_keys: int
    expired_keys: int
    used_memory: int
    max_memory: int
    memory_policy: str

    @property
    def hit_rate(self) -> float:
        """Hits / (hits + misses) of all programs; 0 before the first look-up."""
        asked = self.keyspace_hits + self.keyspace_misses
        return self.keyspace_hits / asked if asked else 0.0

    @classmethod
    def from_info(cls, replies: Sequence[bytes]) -> Self:
        """Add up what each server answers to INFO: lines of names and values."""
        infos = [
            dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
            for reply in replies
        ]

        def total(name: str) -> int:
            return sum(int(info.get(name, 0)) for info in infos)

        def each(*names: str) -> str:
            found = {str(info[name]) for info in infos for name in names if name in info}
            return ", ".join(sorted(found))

        bounds = [int(info.get("maxmemory", 0)) for info in infos]
        return cls(
            # Valkey names its own version, and for old clients one of Redis's.
            version=each("valkey_version") or each("redis_version"),
            servers=len(infos),
            connected_clients=total("connected_clients"),
            commands_processed=total("total_commands_processed"),
            commands_per_second=total("instantaneous_ops_per_sec"),
            keyspace_hits=total("keyspace_hits"),
            keyspace_misses=total("keyspace_misses"),
            evicted_keys=total("evicted_keys"),
            expired_keys=total("expired_keys"),
            used_memory=total("used_memory"),
            max_memory=sum(bounds) if all(bounds) else 0,
            memory_policy=each("maxmemory_policy"),
        )
