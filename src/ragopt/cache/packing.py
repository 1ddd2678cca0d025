"""What stands before a cached value: until when it is fresh, what it cost, what it is made from."""

from __future__ import annotations

import struct
from typing import NamedTuple

from ragopt.cache.lineage import TAG_SIZE, Origin

_HEAD = struct.Struct("<2sBHdf")  # magic and version, flags, number of tags, fresh until, cost
_LOG = struct.Struct("<8sQ")  # id of the log of changes, number of the last change
_MAGIC = b"A\x01"
_HAS_ORIGIN = 1


class Packed(NamedTuple):
    """A value's bytes and what is known of them.

    Args:
        body: The encoded value.
        fresh_until: Seconds since the epoch; infinity for ever.
        cost: Seconds that the computation took; 0 where it is not known.
        origin: What the value was made from; None if that was not followed.
    """

    body: bytes
    fresh_until: float
    cost: float
    origin: Origin | None


def pack(value: Packed) -> bytes:
    """Return the bytes to store."""
    origin = value.origin
    if origin is None:
        return _HEAD.pack(_MAGIC, 0, 0, value.fresh_until, value.cost) + value.body
    head = _HEAD.pack(_MAGIC, _HAS_ORIGIN, len(origin.tags), value.fresh_until, value.cost)
    return head + _LOG.pack(origin.log, origin.seq) + b"".join(origin.tags) + value.body


def unpack(data: bytes) -> Packed | None:
    """Read what ``pack`` made; None if it is something else."""
    if len(data) < _HEAD.size:
        return None
    magic, flags, many, fresh_until, cost = _HEAD.unpack_from(data)
    if magic != _MAGIC or flags > _HAS_ORIGIN:
        return None
    if not flags:
        return Packed(data[_HEAD.size :], fresh_until, cost, None)
    start = _HEAD.size + _LOG.size
    end = start + many * TAG_SIZE
    if len(data) < end:
        return None
    log, seq = _LOG.unpack_from(data, _HEAD.size)
    tags = tuple(data[i : i + TAG_SIZE] for i in range(start, end, TAG_SIZE))
    return Packed(data[end:], fresh_until, cost, Origin(log, seq, tags))
