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

from ragopt._again import Again
from ragopt.cache.answers import AnswerCache
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.tiers import TieredCache
from ragopt.errors import CorruptData, InvalidInput
from ragopt.langchain.plain import from_plain, to_plain
from ragopt.protocols import KVStore

# The only classes that stored data can bring to life.
_GENERATIONS: dict[str, Again[Generation]] = {
    type(blank).__name__: Again(blank)
    for blank in (
        Generation(text=""),
        GenerationChunk(text=""),
        ChatGeneration(message=AIMessage(content="")),
        ChatGenerationChunk(message=AIMessageChunk(content="")),
    )
}


class LLMCache(BaseCache):
    """Exact answers: the same prompt to the same model with the same parameters.

    Args:
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        ttl: Seconds that an answer is kept, None until it is evicted, or a ``Freshness``.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Examples:
        >>> set_llm_cache(LLMCache(TieredCache(MemoryStore(), SqliteStore("cache.db"))))
    """

    def __init__(
        self,
        cache: KVStore | None = None,
        *,
        ttl: TimeToLive = 3_600,
        namespace: str = "default",
        tenant: str | None = None,
    ) -> None:
        self.answers = AnswerCache(
            cache,
            kind="llm",
            ttl=ttl,
            encode=encode_generations,
            decode=decode_generations,
            namespace=namespace,
            tenant=tenant,
        )

    @property
    def cache(self) -> TieredCache:
        """Where the answers are kept, with its statistics."""
        return self.answers.cache

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the generations for this prompt and model, or None."""
        return self.answers.get((prompt, llm_string)) or None

    async def alookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Return the generations for this prompt and model, or None."""
        return await self.answers.aget((prompt, llm_string)) or None

    def update(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keep the generations. What cannot be kept exactly is counted and not kept."""
        self.answers.set((prompt, llm_string), return_val)

    async def aupdate(self, prompt: str, llm_string: str, return_val: RETURN_VAL_TYPE) -> None:
        """Keep the generations. What cannot be kept exactly is counted and not kept."""
        await self.answers.aset((prompt, llm_string), return_val)

    def clear(self, **kwargs: Any) -> None:
        """Forget every answer of this namespace and tenant, and nothing else."""
        self.answers.clear()

    async def aclear(self, **kwargs: Any) -> None:
        """Forget every answer of this namespace and tenant, and nothing else."""
        await self.answers.aclear()


def encode_generations(generations: Sequence[Generation]) -> list[dict[str, Any]]:
    """Return JSON-like values from which ``decode_generations`` makes the same again.

    Raises:
        InvalidInput: There are none, or one that could not be made again exactly.
    """
    encoded = []
    for generation in generations:
        entry: dict[str, Any] = {
            "class": type(generation).__name__,
            "text": generation.text,
            "info": generation.generation_info,
        }
        if isinstance(generation, ChatGeneration):
            entry["message"] = to_plain(generation.message)
            if generation.text == generation.message.content:
                del entry["text"]  # not twice
        encoded.append(entry)
    # A subclass of the provider's own, or a value that pydantic changes on the way, would come
    # back as something else: better no hit than another answer.
    known = all(entry["class"] in _GENERATIONS for entry in encoded)
    if not encoded or not known or decode_generations(encoded) != list(generations):
        raise InvalidInput(
            "An answer has no plain form that is exactly the same.", fix="It is not cached."
        )
    return encoded


def decode_generations(stored: Any) -> list[Generation]:
    """Make the generations from which ``encode_generations`` made ``stored``."""
    generations = [_generation(entry) for entry in stored]
    if not generations:
        raise CorruptData("A stored answer is empty.", fix="Ask the model again.")
    return generations


def _generation(entry: dict[str, Any]) -> Generation:
    fields = {"generation_info": entry["info"]}
    if "message" in entry:
        fields["message"] = message = from_plain(entry["message"])
        fields["text"] = entry.get("text", message.content)
    else:
        fields["text"] = entry["text"]
    return _GENERATIONS[entry["class"]].make(fields)
