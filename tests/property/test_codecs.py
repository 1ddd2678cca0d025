import math
import pickle
from datetime import date, datetime
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ragopt import SparseVector, codecs
from ragopt.errors import CorruptData, InvalidInput
from ragopt.protocols import Entry

VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(alphabet=st.characters()),
        st.binary(),
        st.datetimes(timezones=st.none() | st.timezones().map(lambda _: None)),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=10,
)
ROWS = arrays(np.float32, (5, 7), elements=st.floats(-100, 100, width=32))


def deep_types(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value), [deep_types(item) for item in value]
    if isinstance(value, dict):
        return {key: deep_types(item) for key, item in value.items()}
    return type(value)


@given(VALUES)
@example([2**70, -(2**63) - 1, math.inf, date.min, datetime.max])
def test_values_come_back_with_their_types(value: Any) -> None:
    found = codecs.decode_value(codecs.encode_value(value))
    assert found == value
    assert deep_types(found) == deep_types(value)


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, np.float32(1), {"a": [object()]}, [print]])
def test_what_cannot_be_stored(value: Any) -> None:
    with pytest.raises(InvalidInput, match="cannot be stored"):
        codecs.encode_value(value)


def test_nesting_has_an_end() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="cannot be stored"):
        codecs.encode_value(deep)
    with pytest.raises(CorruptData):
        codecs.decode_value(b"\x91" * 100_000)


@given(st.binary())
@example(b"\xc7\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")  # a map that claims 4 thousand million entries
@example(b"\xc1")
def test_any_bytes_decode_or_are_corrupt(data: bytes) -> None:
    try:
        value = codecs.decode_value(data)
    except CorruptData:
        return
    assert repr(codecs.decode_value(codecs.encode_value(value))) == repr(value)


def test_a_pickle_does_nothing(tmp_path: Any) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "ran"), "w")

    bomb = pickle.dumps(Bomb())
    for decode in (codecs.decode_sparse, codecs.decode_multi, lambda b: codecs.decode_dense([b])):
        assert decode(bomb) is None
    assert codecs.unseal(b"key", bomb) is None
    with pytest.raises(CorruptData):
        codecs.decode_value(bomb)
    assert not (tmp_path / "ran").exists()


# -- envelope -----------------------------------------------------------------------------------


FIRST, SECOND, STRANGE = (codecs.signing_keys(letter * 16) for letter in (b"a", b"b", b"c"))
# How entries are written: plain, signed, compressed, both.
WAYS = [((), None), (FIRST, None), ((), 0), (FIRST, 0)]
WAY = pytest.mark.parametrize(
    ("secrets", "above"), WAYS, ids=["plain", "signed", "compressed", "signed-compressed"]
)
TEXT = b"the payload, the payload, the payload, the payload, the payload"


def content(entry: Entry | None) -> tuple[bytes, float | None] | None:
    return entry and (entry.value, entry.expires_at)


@WAY
@given(st.binary(max_size=40), st.binary() | st.just(TEXT), st.none() | st.floats(0, 1e12))
def test_seal_and_unseal(
    secrets: codecs.Secrets, above: int | None, key: bytes, payload: bytes, expires: float | None
) -> None:
    sealed = codecs.seal(key, payload, expires, secrets, above)
    assert content(codecs.unseal(key, sealed, secrets)) == (payload, expires)
    assert codecs.seal(key, payload, expires, secrets, above) == sealed
    # Neither takes the other's: a signature is demanded, or is not understood.
    assert codecs.unseal(key, sealed, () if secrets else FIRST) is None
    assert codecs.unseal(key, sealed, STRANGE) is None


@WAY
def test_every_changed_bit_and_every_cut_is_no_entry(
    secrets: codecs.Secrets, above: int | None
) -> None:
    sealed = codecs.seal(b"key", TEXT, 1e9, secrets, above)
    for position in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[position // 8] ^= 1 << position % 8
        for readers in ((), FIRST, FIRST + SECOND):
            assert codecs.unseal(b"key", bytes(flipped), readers) is None
    for cut in range(len(sealed)):
        assert codecs.unseal(b"key", sealed[:cut], secrets) is None
    assert codecs.unseal(b"key", sealed + b"x", secrets) is None


@given(st.binary())
@example(b"RO\x01")
@example(b"RO\x01\x02" + bytes(24))
def test_random_bytes_are_no_entry(blob: bytes) -> None:
    for secrets in ((), FIRST):
        assert codecs.unseal(b"key", blob, secrets) is None


def test_an_entry_under_another_key_is_no_entry() -> None:
    for secrets in ((), FIRST):
        sealed = codecs.seal(b"key", b"2payload", None, secrets)
        assert codecs.unseal(b"key2", sealed, secrets) is None
        sealed = codecs.seal(b"ke", b"ypayload", None, secrets)
        assert codecs.unseal(b"key", sealed, secrets) is None


def test_a_secret_is_replaced_step_by_step() -> None:
    old, new = codecs.seal(b"k", TEXT, None, FIRST), codecs.seal(b"k", TEXT, None, SECOND)
    assert codecs.seal(b"k", TEXT, None, FIRST + SECOND) == old != new
    for secrets in (FIRST + SECOND, SECOND + FIRST):
        assert codecs.unseal(b"k", old, secrets) is not None
        assert codecs.unseal(b"k", new, secrets) is not None
    assert codecs.unseal(b"k", old, SECOND) is None


@pytest.mark.parametrize("secret", [b"x" * 15, b"", [], [b"x" * 16, b""], "x" * 16, ["x" * 16]])
def test_a_secret_has_16_bytes(secret: Any) -> None:
    with pytest.raises(InvalidInput, match="secret"):
        codecs.signing_keys(secret)


def test_secrets_that_begin_alike_are_different() -> None:
    long = [codecs.signing_keys(b"x" * 64 + more) for more in (b"", b"y", b"z")]
    assert len({codecs.seal(b"k", b"v", None, secrets) for secrets in long}) == 3


def test_only_what_gets_smaller_is_compressed() -> None:
    noise, zeros = np.random.default_rng(0).bytes(1000), bytes(1000)
    assert len(codecs.seal(b"k", zeros, None, (), 999)) < 60
    assert codecs.seal(b"k", zeros, None, (), 1000) == codecs.seal(b"k", zeros, None)
    assert codecs.seal(b"k", noise, None, (), 0) == codecs.seal(b"k", noise, None)


def with_frame(frame: bytes) -> bytes:
    """Return an envelope that says of any bytes that they are compressed."""
    head = codecs._ENVELOPE
    checksum = codecs._checksum(b"k", 1, math.inf, frame)
    return head.pack(b"RO\x01", 1, math.inf, checksum) + frame


def test_a_bomb_is_no_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    good = zstandard.ZstdCompressor().compress(bytes(5000))
    assert content(codecs.unseal(b"k", with_frame(good))) == (bytes(5000), None)  # the control
    monkeypatch.setattr(codecs, "_LARGEST", 4999)
    assert codecs.unseal(b"k", with_frame(good)) is None
    assert codecs.seal(b"k", bytes(5000), None, (), 0) == codecs.seal(b"k", bytes(5000), None)


@given(st.binary())
@example(b"")
@example(zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000)))  # any size
@example(zstandard.ZstdCompressor().compress(bytes(5000)) + b"more")
@example(zstandard.ZstdCompressor().compress(bytes(5000))[:-1])
@example(b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8)  # claims 16 EiB
@example(b"\x28\xb5\x2f\xfd\xa0" + (256 * 2**20).to_bytes(4, "little"))  # claims the bound
def test_any_frame_is_no_entry(frame: bytes) -> None:
    assert codecs.unseal(b"k", with_frame(frame)) is None


# -- vectors ------------------------------------------------------------------------------------


@given(ROWS)
def test_float32_is_exact(rows: Any) -> None:
    found = codecs.decode_dense([codecs.encode_dense(row) for row in rows])
    assert found is not None
    assert found.dtype == np.float32
    assert np.array_equal(found, rows)
    assert found.flags.writeable


@given(ROWS)
def test_smaller_precisions_are_near(rows: Any) -> None:
    for precision, error in (("float16", 1e-3), ("int8", 1 / 127)):
        payloads = [codecs.encode_dense(row, precision) for row in rows]  # type: ignore[arg-type]
        found = codecs.decode_dense(payloads)
        assert found is not None
        assert found.dtype == np.float32
        largest = np.abs(rows).max(axis=1, keepdims=True)
        assert (np.abs(found - rows) <= error * largest + 1e-6).all()


def test_sizes() -> None:
    row = np.ones(1024, np.float32)
    sizes = [len(codecs.encode_dense(row, p)) for p in ("float32", "float16", "int8")]
    assert sizes == [8 + 4096, 8 + 2048, 8 + 4 + 1024]


def test_vectors_that_do_not_belong_together() -> None:
    one, two = np.ones(4, np.float32), np.ones(5, np.float32)
    a, b = codecs.encode_dense(one), codecs.encode_dense(two)
    assert codecs.decode_dense([a, b]) is None
    assert codecs.decode_dense([a, codecs.encode_dense(one, "float16")]) is None
    assert codecs.decode_dense([a, a[:-1]]) is None
    assert codecs.decode_dense([]) is None
    assert codecs.decode_dense([b""]) is None


@given(st.dictionaries(st.integers(0, 2**40), st.floats(-10, 10, width=32)))
def test_sparse(weights: dict[int, float]) -> None:
    vector = SparseVector.from_dict(weights)
    found = codecs.decode_sparse(codecs.encode_sparse(vector))
    assert found == vector
    assert found is not None
    assert found.to_dict() == weights


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_multi(precision: Any, tokens: int) -> None:
    rows = np.random.default_rng(0).normal(size=(tokens, 16)).astype(np.float32)
    found = codecs.decode_multi(codecs.encode_multi(rows, precision))
    assert found is not None
    assert found.shape == rows.shape
    np.testing.assert_allclose(found, rows, atol=0.05)


@given(st.binary())
def test_random_bytes_are_no_vector(blob: bytes) -> None:
    for prefix in (b"", b"V\x01", b"V\x01\x00\x00\x04\x00\x00\x00", b"V\x01\x01", b"V\x01\x02"):
        for decode in (codecs.decode_sparse, codecs.decode_multi):
            decode(prefix + blob)
        codecs.decode_dense([prefix + blob])


def test_one_kind_is_never_another() -> None:
    row = np.ones(16, np.float32)
    dense = codecs.encode_dense(row)
    sparse = codecs.encode_sparse(SparseVector.from_dict({1: 1.0}))
    multi = codecs.encode_multi(row[None, :])
    assert codecs.decode_dense([sparse]) is codecs.decode_dense([multi]) is None
    assert codecs.decode_sparse(dense) is codecs.decode_sparse(multi) is None
    assert codecs.decode_multi(dense) is codecs.decode_multi(sparse) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\x92\x01\xc7\x00\x03",  # [1, mark]
        b"\xc7\x00\x03",  # the mark alone
        b"\x81\xa1a\xc7\x00\x03",  # {"a": mark}
        b"\x92\xc7\x00\x03\xc7\x00\x03",  # [mark, mark]
        b"\x91\xc7\x01\x03\x90",  # [mark with content]
    ],
)
def test_a_tuples_mark_elsewhere_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptData):
        codecs.decode_value(data)
