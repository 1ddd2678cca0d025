"""What a Redis URL says: which servers, how they belong together, how to connect."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from ragopt._imports import require
from ragopt.errors import InvalidInput

Address: TypeAlias = tuple[str, int]


class Place(NamedTuple):
    """What a URL says. ``options`` may hold a password; ``shown`` never does."""

    shown: str
    kind: str  # "server", "cluster" or "sentinel"
    nodes: list[Address]
    service: str  # what the Sentinels call their servers
    connection: str  # the name of the driver's class
    options: dict[str, Any]


def read_url(url: str) -> Place:
    """Read a URL in the way of redis-py and RedisVL.

    Raises:
        InvalidInput: It cannot be read. The sentence does not quote it.
    """
    try:
        return _read(url)
    except (ValueError, TypeError, AttributeError, require("redis", "redis").RedisError):
        # The driver's own words may quote a part of the password.
        raise InvalidInput(
            "The Redis URL cannot be read.",
            fix="Write it as redis://user:password@host:6379/0, redis://host1,host2?cluster=true "
            "or redis+sentinel://host1,host2/mymaster/0, with special characters of the password "
            "percent-encoded, options by redis-py's names, and without decode_responses.",
        ) from None


def _read(url: str) -> Place:
    redis = require("redis", "redis")
    parse = require("redis.connection", "redis").parse_url
    parts = urlsplit(url)
    scheme, plus, kind = parts.scheme.partition("+")
    if (plus and kind != "sentinel") or parts.fragment:
        raise ValueError("another kind of URL")
    login, at, hosts = parts.netloc.rpartition("@")
    first, *others = hosts.split(",")
    query = dict(parse_qsl(parts.query))
    if query.pop("cluster", "false").lower() == "true" or (others and not kind):
        kind = kind or "cluster"
    path, service = parts.path, ""
    if kind == "sentinel":
        service, _, path = path.lstrip("/").partition("/")
    if scheme == "unix" and kind:
        raise ValueError("a cluster is reached by host and port")
    if scheme != "unix" and not (path.strip("/") or "0").isdecimal():
        raise ValueError("the path is no database")  # the driver would take 0
    # By hand, since urlunsplit leaves out what the driver wants to see.
    path = "/" + path.lstrip("/")
    options = parse(f"{scheme}://{login}{at}{first}{path}?{urlencode(query)}")
    connection = options.pop("connection_class", redis.Connection)
    # Made, not opened: it knows which options there are.
    connection(**{name: options[name] for name in options.keys() - {"max_connections", "timeout"}})
    if "decode_responses" in options or "retry" in options:
        raise ValueError("these two are not for choice")
    if kind == "cluster" and options.pop("db", 0):
        raise ValueError("a cluster has no databases")
    default = 26379 if kind == "sentinel" else 6379
    given = [options, *(parse(f"redis://{host}") for host in others)]
    nodes = [(one.get("host", "localhost"), one.get("port", default)) for one in given]
    if "path" in options:
        shown = f"unix://{options['path']}?db={options.get('db', 0)}"
    else:
        service = unquote(service) or "mymaster"
        end = {"": "", "sentinel": f"/{service}", "cluster": "?cluster=true"}[kind]
        number = "" if kind == "cluster" else f"/{options.get('db', 0)}"
        shown = ",".join(map(text, nodes)) + end + number
    return Place(shown, kind or "server", nodes, service, connection.__name__, options)


def text(address: Address) -> str:
    """Return how an address is written."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
