"""One event of LlamaIndex's instrumentation for each look-up in a cache."""

from __future__ import annotations

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events import BaseEvent

_dispatcher = get_dispatcher(__name__)


class CacheEvent(BaseEvent):
    """Something was looked up in a cache; sent to the handlers of LlamaIndex's dispatchers.

    Args:
        kind: What was looked up: "answer", "llm", "retrieval".
        hit: Whether the call was spared the computation.
    """

    kind: str
    hit: bool

    @classmethod
    def class_name(cls) -> str:
        """Name of the class in serialised events."""
        return "CacheEvent"


def tell(kind: str, *, hit: bool) -> None:
    """Send the event of one look-up."""
    _dispatcher.event(CacheEvent(kind=kind, hit=hit))
