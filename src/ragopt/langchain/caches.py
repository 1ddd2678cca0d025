"""LangChain's cache of model answers, over any ragopt store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, BaseCache
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
)

from ragopt._run import run
from ragopt._runtime import ASYNC, SYNC, Runtime
from ragopt.cache.answers import AnswerCache
from ragopt.cache.values import MISSING
from ragopt.protocols import KVStore

# The only classes that stored data can bring to life.
_GENERATIONS: dict[str, type[Generation]] = {
    cls.__name__: cls for cls in (Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk)
}
_MESSAGES: dict[str, type[AIMessage]] = {cls.__name__: cls for cls in (AIMessage, AIMessageChunk)}


class LLMCache(BaseCache):
    """Exact answers: the same prompt to the same model with the same parameters.

    Args:
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        ttl: Seconds that an answer is kept; None until it is evicted.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Example:
        >>> set_llm_cache(LLMCache(TieredCache(MemoryStore(), SqliteStore("cache.db"))))
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        ttl: float | None = 3_600,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        self.answers = AnswerCache(cache, ttl=ttl, namespace=namespace, tenant=tenant)

    async def _lookup(self, io: Runtime, prompt: str, llm: str) -> RETURN_VAL_TYPE | None:
        stored = await io.call(self.answers.get, self.answers.aget, (prompt, llm))
        return None if stored is MISSING else _decode(stored)

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the generations for this prompt and model, or None."""
        return run(self._lookup(SYNC, prompt, llm_string))

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the generations for this prompt and model, or None."""
        return await self._lookup(ASYNC, prompt, llm_string)

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keep the generations. What cannot be kept exactly is counted and not kept."""
        self.answers.set((prompt, llm_string), _encode(return_val))

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keep the generations. What cannot be kept exactly is counted and not kept."""
        await self.answers.aset((prompt, llm_string), _encode(return_val))

    def clear(self, **kwargs: Any) -> None:
        """Forget every answer of this namespace and tenant, and nothing else."""
        self.answers.clear()

    async def aclear(self, **kwargs: Any) -> None:
        """Forget every answer of this namespace and tenant, and nothing else."""
        await self.answers.aclear()


def _encode(generations: Sequence[Generation]) -> Any:
    """Return plain values, or an object that the answer cache will count as uncacheable."""
    encoded = []
    for generation in generations:
        entry: dict[str, Any] = {
            "class": type(generation).__name__,
            "text": generation.text,
            "info": generation.generation_info,
        }
        if isinstance(generation, ChatGeneration):
            entry["message"] = generation.message.model_dump()
            entry["message_class"] = type(generation.message).__name__
        encoded.append(entry)
    # A subclass of the provider's own, or a value that pydantic changes on the way, would come
    # back as something else: better no hit than another answer.
    return encoded if _decode(encoded) == list(generations) else object()


def _decode(stored: Any) -> list[Generation] | None:
    try:
        return [_generation(entry) for entry in stored]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _generation(entry: dict[str, Any]) -> Generation:
    cls = _GENERATIONS[entry["class"]]
    if "message" not in entry:
        return cls(text=entry["text"], generation_info=entry["info"])
    message = _MESSAGES[entry["message_class"]].model_validate(entry["message"])
    return cls(message=message, generation_info=entry["info"])  # type: ignore[call-arg]
