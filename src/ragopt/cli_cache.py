"""The commands ``ragopt cache``: what a store holds, and how to be rid of it."""

from __future__ import annotations

import json as jsons
import sys
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ragopt._readable import size
from ragopt._redis.url import read_url
from ragopt.cache import contents
from ragopt.cache.contents import Choice, Group
from ragopt.cache.lineage import Lineage
from ragopt.cache.tiers import TieredCache
from ragopt.errors import InvalidInput, StorageError
from ragopt.stores.redis import RedisServerStats, RedisStore
from ragopt.stores.sqlite import SqliteStore

Store: TypeAlias = RedisStore | SqliteStore

_TIMEOUT = 5.0  # seconds; a person waits longer than a chain may
_SQLITE = b"SQLite format 3\0"

RedisOption = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="URL of the Redis servers.")
]
SqliteOption = Annotated[
    Path | None, typer.Option("--sqlite", metavar="PATH", help="The file of a SqliteStore.")
]
NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", metavar="NAME", help="Only this namespace.")
]
TenantOption = Annotated[
    str | None, typer.Option("--tenant", metavar="NAME", help="Only this tenant.")
]
NoTenantOption = Annotated[
    bool, typer.Option("--no-tenant", help="Only what belongs to no tenant.")
]
KindOption = Annotated[
    str | None,
    typer.Option("--kind", metavar="NAME", help="Only this kind, such as answer or embedding."),
]


def stats(
    redis: RedisOption = None,
    sqlite: SqliteOption = None,
    namespace: NamespaceOption = None,
    tenant: TenantOption = None,
    no_tenant: NoTenantOption = False,
    kind: KindOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how many entries there are, by namespace, tenant and kind, and what they take up.

    All keys are listed for it. Of Redis also the servers' own figures, which cover every program
    that uses them. Hits and misses of one cache are known to its own process: print its stats.
    """
    choice = _choice(namespace, tenant, no_tenant, kind)
    with closing(_open(redis, sqlite)) as store:
        # First, since opening a file adds to it and listing keys counts as hits.
        held = store.size_bytes if isinstance(store, SqliteStore) else None
        server = store.server_stats() if isinstance(store, RedisStore) else None
        found = contents.contents(store, choice)
    where = str(sqlite) if redis is None else read_url(redis).shown  # without the password
    if json:
        typer.echo(jsons.dumps(_plain(where, found, held, server), indent=2))
    else:
        _print(where, found, held, server)


def clear(
    redis: RedisOption = None,
    sqlite: SqliteOption = None,
    namespace: NamespaceOption = None,
    tenant: TenantOption = None,
    no_tenant: NoTenantOption = False,
    kind: KindOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every entry that a ragopt store wrote.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove the entries of a namespace, or of one tenant or kind in it.

    Processes with a max_staleness drop them from their memory within that time. Entries of the
    kinds bytes and kv may be the only copy of what they hold.
    """
    choice = _choice(namespace, tenant, no_tenant, kind)
    if everything == (choice != contents.ALL) or (namespace is None and not everything):
        raise typer.BadParameter(
            "Name a namespace, or pass --all and nothing else.", param_hint="'--namespace'"
        )
    with closing(_open(redis, sqlite)) as store:
        found = contents.contents(store, choice)
        if kind is not None and not found and kind not in contents.KINDS:
            _refuse_kind(store, kind)
        if not yes:
            confirm(f"Remove {_many(found)} {_meaning(choice)}?")
        gone = contents.clear(store, choice)
    typer.echo(f"Removed {gone:,} {'entry' if gone == 1 else 'entries'} {_meaning(choice)}.")


def invalidate(
    documents: Annotated[
        list[str] | None, typer.Argument(metavar="DOCUMENT", help="Names of documents.")
    ] = None,
    redis: RedisOption = None,
    sqlite: SqliteOption = None,
    namespace: Annotated[
        str, typer.Option(metavar="NAME", help="The namespace of the lineage.")
    ] = "default",
    tenant: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The tenant of the lineage; without it, that of none."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--everything", help="Any document may have changed.")
    ] = False,
) -> None:
    """Say that documents changed, so that no process serves what was built on them.

    It is about what is kept with a Lineage of this namespace and tenant, and holds at once, or
    within the max_staleness of that Lineage. Nothing is searched for and nothing is removed.
    """
    names = documents or []
    if everything == bool(names):
        raise typer.BadParameter("Name documents, or pass --everything.", param_hint="DOCUMENT")
    if "" in names:
        raise InvalidInput("The name of a document is empty.", fix="Name it as your index does.")
    with closing(_open(redis, sqlite)) as store:
        lineage = Lineage(TieredCache(store), namespace=namespace, tenant=tenant)
        if everything:
            lineage.changed_everything()
        else:
            lineage.changed(*names)
    many = "1 document" if len(names) == 1 else f"{len(names):,} documents"
    what = "Everything" if everything else f"What was built on {many}"
    whose = "no tenant" if tenant is None else f"tenant {tenant!r}"
    typer.echo(f"{what} (namespace {namespace!r}, {whose}) is no longer served.")


COMMANDS = (stats, clear, invalidate)


def _open(redis: str | None, sqlite: Path | None) -> Store:
    """Return the one store that is named; a file is never made here."""
    if (redis is None) == (sqlite is None):
        raise typer.BadParameter("Pass one of the two.", param_hint="'--redis' / '--sqlite'")
    if redis is not None:
        return RedisStore(redis, timeout=_TIMEOUT)
    assert sqlite is not None
    path = sqlite.expanduser()
    fix = "Nothing was written. Pass the path that a SqliteStore was given."
    try:
        if not path.exists():
            raise StorageError(f"There is no cache file {path}.", fix=fix)
        if not path.is_file():
            raise StorageError(f"{path} is no file.", fix=fix)
        with path.open("rb") as file:
            begin = file.read(len(_SQLITE))
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}).", fix=fix) from error
    if begin != _SQLITE:
        raise StorageError(f"{path} is no cache file.", fix=fix)
    return SqliteStore(path, timeout=_TIMEOUT)


def _choice(namespace: str | None, tenant: str | None, no_tenant: bool, kind: str | None) -> Choice:
    if tenant is not None and no_tenant:
        raise typer.BadParameter("Pass one of the two.", param_hint="'--tenant' / '--no-tenant'")
    return Choice(namespace, tenant, no_tenant, kind)


def _refuse_kind(store: Store, kind: str) -> None:
    there = sorted({group.kind for group in contents.contents(store) if group is not None})
    raise InvalidInput(
        f"There is no kind {kind!r} there.",
        fix=f"There is: {', '.join(map(shown_name, there)) or 'nothing'}.",
    )


def confirm(question: str) -> None:
    """Ask before something is removed; end the command unless the answer is yes."""
    typer.echo(f"{question} [y/N] ", nl=False, err=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        typer.echo(err=True)
    if answer.strip().lower() not in ("y", "yes"):
        hint = "" if answer else " Pass --yes where nobody can be asked."
        typer.echo(f"Nothing was removed.{hint}", err=True)
        raise typer.Exit(1)


# -- what is printed -----------------------------------------------------------------------


def shown_name(name: str) -> str:
    """Return a name that was found in a store; what could steer a terminal is written out."""
    return name if name.isprintable() else ascii(name)


def _meaning(choice: Choice) -> str:
    if choice.namespace is None:
        return "of all namespaces"
    words = f"of namespace {choice.namespace!r}"
    if choice.no_tenant:
        words += ", of no tenant"
    if choice.tenant is not None:
        words += f", tenant {choice.tenant!r}"
    return words if choice.kind is None else f"{words}, kind {choice.kind!r}"


def _many(found: Counter[Group | None]) -> str:
    number = found.total()
    kinds: Counter[str] = Counter()
    for group, entries in found.items():
        kinds["other" if group is None else shown_name(group.kind)] += entries
    each = ", ".join(f"{kind} {entries:,}" for kind, entries in sorted(kinds.items()))
    return f"{number:,} {'entry' if number == 1 else 'entries'}" + (f" ({each})" if each else "")


def _sorted(found: Counter[Group | None]) -> list[tuple[Group, int]]:
    groups = [(group, number) for group, number in found.items() if group is not None]
    return sorted(groups, key=lambda each: (each[0].namespace, each[0].tenant or "", each[0].kind))


def _plain(
    where: str, found: Counter[Group | None], held: int | None, server: RedisServerStats | None
) -> dict[str, Any]:
    groups = [{**group._asdict(), "entries": number} for group, number in _sorted(found)]
    plain: dict[str, Any] = {
        "where": where,
        "entries": found.total(),
        "others": found[None],
        "groups": groups,
    }
    if held is not None:
        plain["bytes"] = held
    if server is not None:
        plain["server"] = {**asdict(server), "hit_rate": server.hit_rate}
    return plain


def _print(
    where: str, found: Counter[Group | None], held: int | None, server: RedisServerStats | None
) -> None:
    console = Console(highlight=False)
    taken = "" if held is None else f", {size(held)}"
    console.print(Text(f"{where}: {found.total():,} entries{taken}"))
    if found:
        table = Table()
        for name in ("Namespace", "Tenant", "Kind"):
            table.add_column(name, overflow="fold")
        table.add_column("Entries", justify="right", no_wrap=True)
        for group, number in _sorted(found):
            tenant = Text("none", "dim") if group.tenant is None else Text(shown_name(group.tenant))
            table.add_row(
                Text(shown_name(group.namespace)),
                tenant,
                Text(shown_name(group.kind)),
                f"{number:,}",
            )
        if found[None]:
            table.add_row(Text("under keys of other programs", "dim"), "", "", f"{found[None]:,}")
        console.print(table)
    if server is not None:
        console.print(_server(server))


def _server(server: RedisServerStats) -> Table:
    """Return the servers' own figures as a table."""
    bound = f"of {size(server.max_memory)}" if server.max_memory else "without a bound"
    rows = {
        "Version": f"{server.version}, servers: {server.servers}",
        "Connections": f"{server.connected_clients:,}",
        "Commands": f"{server.commands_processed:,}, {server.commands_per_second:,} a second",
        "Keyspace hits": f"{server.keyspace_hits:,}",
        "Keyspace misses": f"{server.keyspace_misses:,}",
        "Hit rate": f"{server.hit_rate:.1%}",
        "Memory": f"{size(server.used_memory)} {bound}, {server.memory_policy}",
        "Evicted": f"{server.evicted_keys:,}",
        "Expired": f"{server.expired_keys:,}",
    }
    table = Table(title="The server, all its programs", title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table
