"""Claims and change logs on a Redis server, each operation one script over one key.

A log is one sorted set, so the server can only evict it whole, and then everything that relies
on it is gone too. Its members are tags scored by the number of their last change, and three of
its own: at ranks 0 and 1 the last number forgotten (as ``-10 - number``) and the log's id (-1),
at the end the number of the last change.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

from ragopt.codecs import STAMP_SIZE
from ragopt.protocols import ChangeLog
from ragopt.stores.coordinating import KEPT_CHANGES

_HELD = f"redis.call('GETRANGE', KEYS[1], 0, {STAMP_SIZE - 1})"

CLAIM = f"""
local held = {_HELD}
if held ~= '' and held ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

EXTEND = f"""
if {_HELD} ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

COMMIT = f"""
if {_HELD} ~= ARGV[1] then return 0 end
if ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""

RELEASE = f"""
if {_HELD} ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""

_STATE = r"""
local key, seq = KEYS[1], '\1'
local head = redis.call('ZRANGE', key, 0, 1, 'WITHSCORES')
if #head == 0 then
  redis.call('ZADD', key, -10, '\0', -1, ARGV[1], 0, seq)
  head = {'\0', '-10', ARGV[1], '-1'}
end
"""
_RETURN = "return {head[3], redis.call('ZSCORE', key, seq), head[2]"

MARK = (
    _STATE
    + f"""
local number = redis.call('ZINCRBY', key, 1, seq)
for i = 2, #ARGV do redis.call('ZADD', key, number, ARGV[i]) end
local many = redis.call('ZCARD', key) - 3 - {KEPT_CHANGES}
if many > 0 then
  local last = redis.call('ZRANGE', key, many + 1, many + 1, 'WITHSCORES')
  redis.call('ZREMRANGEBYSCORE', key, 0, last[2])
  redis.call('ZADD', key, number, seq)
  head[2] = tostring(-10 - last[2])
  redis.call('ZADD', key, head[2], head[1])
end
{_RETURN}}}
"""
)

LAST_CHANGES = (
    _STATE
    + f"""
local found = {{}}
for i = 2, #ARGV do found[i - 1] = redis.call('ZSCORE', key, ARGV[i]) or '0' end
{_RETURN}, found}}
"""
)

CHANGES_SINCE = (
    _STATE
    + f"""
local found = redis.call('ZRANGEBYSCORE', key, '(' .. ARGV[2], '+inf')
{_RETURN}, found}}
"""
)


def milliseconds(seconds: float) -> int:
    """Return a lifetime as Redis wants it: at least 1, since it takes 0 for an error."""
    return max(1, math.ceil(seconds * 1000))


def log_key(space: bytes) -> bytes:
    """Return the key of the log of a space."""
    return b"ragopt-changes:" + space


def new_id() -> bytes:
    """Return an id for a log that begins."""
    return b"\x03" + secrets.token_bytes(8)


def member(tag: bytes) -> bytes:
    """Return a tag as a member of the sorted set, apart from the set's own members."""
    return b"\x02" + tag


def state(reply: Sequence[Any]) -> ChangeLog:
    """Read what every script about logs returns first."""
    id_, seq, low = reply[:3]
    return ChangeLog(bytes(id_)[1:], int(float(seq)), int(-10 - float(low)))


def tags(members: Sequence[bytes]) -> list[bytes]:
    """Return the tags among the members of a log."""
    return [each[1:] for each in members if each[:1] == b"\x02"]
