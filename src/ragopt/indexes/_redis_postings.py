"""An inverted index in one Redis hash, for sparse vectors and for the terms of texts.

The hash holds, under names of bytes,

* ``s<token>:<block>`` and ``t<term>:<block>``: the postings of a token, or of a term of a text:
  for each record that holds it two bytes that say which, and its weight as a float32. A block is
  a stretch of 4,096 places in the order of adding, so a change rewrites some kilobytes; of more
  where others hold most of them, as the shards of an index do.
* ``n<place>``: the end of the key of the record with that place.

So an entry takes some ten bytes, where one in a sorted set takes fifty and more, and a search sends
bytes that numpy adds up: the server, which is one thread for everybody, only copies them. All of
it is one key, which is removed at once.

Records keep what finds their postings again: ``sparse``, the tokens and then the weights, and
``terms``, the terms alone. The scripts are atomic, and so is the transaction that they are part of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragopt.errors import InvalidInput
from ragopt.text import WeightedTerms, term_vector
from ragopt.types import Dense, SparseVector

Family: TypeAlias = Literal["s", "t"]
Places: TypeAlias = NDArray[np.int64]

BLOCK = 4_096
LARGEST_BLOCK = 65_536  # places that two bytes can tell apart
_ENTRY = np.dtype([("offset", "<u2"), ("weight", "<f4")])
_MOST = 2**32 - 1
EVERY = 1_000_000_000
"""A term that all texts have, so that they can be counted; the terms of words are below it."""

# KEYS: the postings. ARGV: names and what to append to each.
APPEND = """
for i = 1, #ARGV, 2 do
  local before = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  redis.call('HSET', KEYS[1], ARGV[i], before .. ARGV[i + 1])
end
"""

# KEYS: the postings, records. Removes the records with all that was stored of them.
_FORGET = """
local cut = {}
local function mark(family, packed, number, place)
  local block = ':' .. math.floor(place / <block>)
  local offset = struct.pack('<I2', place % <block>)
  for at = 1, number do
    local name = family .. struct.unpack('<I4', packed, 4 * at - 3) .. block
    cut[name] = cut[name] or {}
    table.insert(cut[name], offset)
  end
end
for i = 2, #KEYS do
  local place, sparse, terms = unpack(redis.call('HMGET', KEYS[i], 'seq', 'sparse', 'terms'))
  if sparse or terms then
    redis.call('HDEL', KEYS[1], 'n' .. place)
    mark('s', sparse, sparse and #sparse / 8 or 0, place)
    mark('t', terms, terms and #terms / 4 or 0, place)
  end
end
local function seek(entries, offset, from)
  local at = string.find(entries, offset, from, true)
  while at and (at - 1) % 6 ~= 0 do
    at = string.find(entries, offset, at + 1, true)
  end
  return at
end
for name, offsets in pairs(cut) do
  local entries = redis.call('HGET', KEYS[1], name) or ''
  local places, after = {}, 1
  for _, offset in ipairs(offsets) do
    -- Records are mostly named in the order of adding, in which the entries are.
    local at = seek(entries, offset, after) or seek(entries, offset, 1)
    if at then
      table.insert(places, at)
      after = at + 6
    end
  end
  table.sort(places)
  local kept, from = {}, 1
  for _, at in ipairs(places) do
    table.insert(kept, string.sub(entries, from, at - 1))
    from = at + 6
  end
  table.insert(kept, string.sub(entries, from))
  entries = table.concat(kept)
  if entries == '' then
    redis.call('HDEL', KEYS[1], name)
  else
    redis.call('HSET', KEYS[1], name, entries)
  end
end
return redis.call('DEL', unpack(KEYS, 2))
"""

# KEYS: the postings, what is stored about the index. ARGV: tokens with their kind.
# Returns for each token its blocks, each with its number before it.
_FETCH = """
local last = math.floor((redis.call('HGET', KEYS[2], 'seq') or 0) / <block>)
local found = {}
for i = 1, #ARGV do
  found[i] = {}
  for block = 0, last do
    local entries = redis.call('HGET', KEYS[1], ARGV[i] .. ':' .. block)
    if entries then
      table.insert(found[i], block)
      table.insert(found[i], entries)
    end
  end
end
return found
"""

# The same keys and arguments. Returns how many records hold each token.
_COUNT = """
local last = math.floor((redis.call('HGET', KEYS[2], 'seq') or 0) / <block>)
local found = {}
for i = 1, #ARGV do
  found[i] = 0
  for block = 0, last do
    found[i] = found[i] + redis.call('HSTRLEN', KEYS[1], ARGV[i] .. ':' .. block) / 6
  end
end
return found
"""

# KEYS: the postings. ARGV: what keys of records begin with, how many fields, the fields, places.
# Returns for each place the key and the values, or nothing if it is gone.
READ = """
local names = {}
for i = 3, 2 + ARGV[2] do
  table.insert(names, ARGV[i])
end
local found = {}
for i = 3 + ARGV[2], #ARGV do
  local name = redis.call('HGET', KEYS[1], 'n' .. ARGV[i])
  local values = name and redis.call('HMGET', ARGV[1] .. name, unpack(names))
  table.insert(found, values and {ARGV[1] .. name, values})
end
return found
"""


class Scripts(NamedTuple):
    """The scripts that have to know how many places a block is for."""

    forget: str
    fetch: str
    tally: str


@cache
def scripts(block: int) -> Scripts:
    """Return the scripts for blocks of a size."""
    size = str(block)
    return Scripts(*(each.replace("<block>", size) for each in (_FORGET, _FETCH, _COUNT)))


def terms_of(text: str) -> SparseVector:
    """Return the terms of a text, and the one that all texts have."""
    vector = term_vector(text)
    return SparseVector(np.append(vector.indices, EVERY), np.append(vector.values, 0))


def pack_sparse(vector: SparseVector) -> bytes:
    """Return a vector as a record keeps it.

    Raises:
        InvalidInput: An index is too large.
    """
    if len(vector) and vector.indices[-1] > _MOST:
        raise InvalidInput(
            f"A sparse vector has the index {vector.indices[-1]:,}. Nothing was stored.",
            fix=f"Redis takes indices up to {_MOST:,}: hash them to a smaller space.",
        )
    return pack_terms(vector) + vector.values.astype("<f4").tobytes()


def pack_terms(vector: SparseVector) -> bytes:
    """Return the indices of a vector as bytes."""
    return vector.indices.astype("<u4").tobytes()


def unpack_sparse(packed: bytes) -> SparseVector:
    """Return the vector that ``pack_sparse`` packed."""
    number = len(packed) // 8
    return SparseVector(
        np.frombuffer(packed, "<u4", number).astype(np.int64),
        np.frombuffer(packed, "<f4", number, 4 * number).astype(np.float32),
    )


def postings(
    family: Family,
    places_of: Sequence[int],
    vectors: Sequence[SparseVector | None],
    block: int = BLOCK,
) -> list[bytes]:
    """Return the names of blocks, each followed by what records add to it.

    Args:
        family: What the vectors are of.
        places_of: The places of the records.
        vectors: One for each record that has one.
        block: How many places a block is for.
    """
    pairs = zip(places_of, vectors, strict=True)
    held = [(place, each) for place, each in pairs if each is not None]
    if not held:
        return []
    tokens = np.concatenate([each.indices for _, each in held])
    places = np.repeat([place for place, _ in held], [len(each) for _, each in held])
    weights = np.concatenate([each.values for _, each in held])
    order = np.lexsort((places, tokens))
    tokens, places = tokens[order], places[order]
    entries = np.empty(len(order), _ENTRY)
    entries["offset"], entries["weight"] = places % block, weights[order]
    blocks = places // block
    new = (np.diff(tokens, prepend=-1) != 0) | (np.diff(blocks, prepend=-1) != 0)
    packed, step = entries.tobytes(), _ENTRY.itemsize
    words: list[bytes] = []
    for begin, end in pairwise([*np.flatnonzero(new).tolist(), len(order)]):
        name = b"%b%d:%d" % (family.encode(), tokens[begin], blocks[begin])
        words += name, packed[step * begin : step * end]
    return words


def scores(
    query: SparseVector, found: Sequence[Sequence[Any]], size: int = BLOCK
) -> tuple[Places, Dense]:
    """Return the places of records whose inner product with a query is above 0, and the products.

    Args:
        query: The query; of ``WeightedTerms`` with groups, a record has to hold all terms of one.
        found: What ``fetch`` returned for its tokens.
        size: How many places a block is for.
    """
    blocks: dict[int, dict[int, tuple[NDArray[Any], np.float32]]] = {}
    for token, weight, parts in zip(query.indices.tolist(), query.values, found, strict=True):
        for block, entries in zip(parts[::2], parts[1::2], strict=True):
            blocks.setdefault(block, {})[token] = np.frombuffer(entries, _ENTRY), weight
    places, products = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for block, held in blocks.items():
        total = np.zeros(size)
        # A record holds a token once, so no place is named twice here.
        for entries, weight in held.values():
            total[entries["offset"]] += entries["weight"] * np.float64(weight)
        if isinstance(query, WeightedTerms) and query.groups:
            offsets = {token: each["offset"] for token, (each, _) in held.items()}
            total[~_whole(query.groups, offsets, size)] = 0
        single = total.astype(np.float32)
        above = np.flatnonzero(single > 0)
        places.append(above + block * size)
        products.append(single[above])
    return np.concatenate(places), np.concatenate(products)


def _whole(
    groups: Iterable[Sequence[int]], held: Mapping[int, NDArray[np.uint16]], size: int
) -> NDArray[np.bool_]:
    """Return which places of a block hold all terms of one group."""
    found = np.zeros(size, dtype=bool)
    for group in groups:
        if all(term in held for term in group):
            number = np.zeros(size, dtype=np.int64)
            for term in group:
                number[held[term]] += 1
            found |= number == len(group)
    return found


def ranked(places: Places, products: Dense, first: int) -> Iterator[tuple[Places, Dense]]:
    """Yield places with their products, the highest first; of equal ones the first in order.

    They come in parts, the first of which has ``first`` or more, so that not all are sorted where
    few are needed.
    """
    while len(places):
        top = np.ones(len(places), dtype=bool)
        if first < len(places):
            top = products >= np.partition(products, -first)[-first]
        order = np.lexsort((places[top], -products[top]))
        yield places[top][order], products[top][order]
        places, products, first = places[~top], products[~top], 16 * first
