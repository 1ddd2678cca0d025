"""Stores outside this process: what comes back from them is checked before it is believed."""

from __future__ import annotations

from collections.abc import Sequence

from ragopt._imports import require
from ragopt.codecs import seal, signing_keys, unseal
from ragopt.errors import InvalidInput
from ragopt.protocols import Clock, Entry
from ragopt.stores.coordinating import CoordinatingStore, is_claim


class SealedStore(CoordinatingStore):
    """A store whose entries lie in envelopes (see ``codecs.seal``).

    Args:
        secret: Signs the entries; several, of which the first one signs and all verify; or None.
        compress_above: Compress longer values with zstd, in bytes; None for none.
        clock: Seconds since the epoch.

    Raises:
        MissingDependency: ``compress_above`` without zstandard.
        InvalidInput: ``compress_above`` is below 0, or a secret is too short.
    """

    def __init__(
        self,
        *,
        secret: bytes | Sequence[bytes] | None,
        compress_above: int | None = None,
        clock: Clock,
    ) -> None:
        super().__init__(clock=clock)
        self.corrupt_entries = 0
        """How many entries this process found that nobody can have stored as they are."""
        self._secrets = signing_keys(secret)
        self._compress_above = compress_above
        if compress_above is not None:
            require("zstandard", "zstd")
            if compress_above < 0:
                raise InvalidInput(
                    f"compress_above={compress_above} was given.",
                    fix="Give a number of bytes, or None to compress nothing.",
                )

    def _seal(self, key: bytes, value: bytes, expires_at: float | None) -> bytes:
        return seal(key, value, expires_at, self._secrets, self._compress_above)

    def _unseal(self, key: bytes, blob: bytes | None, now: float) -> Entry | None:
        """Return the entry in an envelope; None for a claim, what is damaged, and what expired."""
        if blob is None:
            return None
        entry = unseal(key, blob, self._secrets)
        if entry is None:
            self.corrupt_entries += not is_claim(blob)
        elif entry.expires_at is not None and entry.expires_at <= now:
            return None
        return entry
