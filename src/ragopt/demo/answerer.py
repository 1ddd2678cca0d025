"""Who answers: an extractive answerer without a language model, or a LangChain chat model."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from ragopt.demo.passages import sentences, words
from ragopt.errors import InvalidInput, RagoptError

PROMPT = """Answer the question from the context alone.

Context:
{context}

Question: {question}
Answer:"""

EXTRACTIVE = (
    "extractive answerer: quotes the sentence that shares the most words with the question; "
    "no language model"
)
_NOTHING = "The documents say nothing about this."
_BEGINNING = 5  # letters: "yield" and "yields", "copy" and "copying" are the same word here
_COMMON = frozenset(
    """
    a an and are as at be by can do does for from get have how i if in is it its me my of on
    or that the their them they this to was what when where which who why will with you your
    said about
    """.split()  # noqa: SIM905 - quotes would hide the words
)


class Answerer(Protocol):
    """A prompt in, an answer out."""

    name: str

    def complete(self, prompt: str) -> str:
        """Return the answer to a filled ``PROMPT``."""
        ...

    async def acomplete(self, prompt: str) -> str:
        """Return the answer to a filled ``PROMPT``."""
        ...


class ExtractiveAnswerer:
    """Quotes the sentence of the context that shares the most words with the question."""

    name = EXTRACTIVE

    def complete(self, prompt: str) -> str:
        """Return the sentence; the first of those that share equally many words."""
        body, _, question = prompt.rpartition("\n\nQuestion: ")
        context = body.partition("Context:\n")[2]
        return quote(question.removesuffix("\nAnswer:"), context)

    async def acomplete(self, prompt: str) -> str:
        """Return the sentence; it takes about a millisecond."""
        return self.complete(prompt)


class ChatModelAnswerer:
    """Any chat model that LangChain knows by an id, such as ``openai:gpt-4o-mini``.

    Args:
        model: The id.

    Raises:
        InvalidInput: LangChain is not installed, or knows no such model, or misses its key.
    """

    def __init__(self, model: str) -> None:
        self.name = model
        try:
            make = import_module("langchain.chat_models").init_chat_model
        except ModuleNotFoundError as error:
            raise InvalidInput(
                "langchain is not installed, which --llm needs to find a model.",
                fix="Install it with: pip install langchain",
            ) from error
        try:
            self._model: Any = make(model)
        except Exception as error:
            raise InvalidInput(
                f"The model {model!r} cannot be used: {_first_line(error)}.",
                fix="Give an id such as openai:gpt-4o-mini, install that provider's LangChain "
                "package, and set its key.",
            ) from error

    def complete(self, prompt: str) -> str:
        """Return the model's answer."""
        try:
            return str(self._model.invoke(prompt).text)
        except Exception as error:
            raise self._failed(error) from error

    async def acomplete(self, prompt: str) -> str:
        """Return the model's answer."""
        try:
            return str((await self._model.ainvoke(prompt)).text)
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RagoptError:
        return RagoptError(
            f"The model {self.name} did not answer: {_first_line(error)}.",
            fix="Check the key and the network, or leave --llm out.",
        )


def answerer(llm: str | None) -> Answerer:
    """Return the answerer that ``--llm`` asks for."""
    return ExtractiveAnswerer() if llm is None else ChatModelAnswerer(llm)


def quote(question: str, context: str) -> str:
    """Return the sentence of the context that shares the most words with the question."""
    wanted = _stems(question)
    best, most = "", -1
    for sentence in sentences(context):
        shared = len(wanted & _stems(sentence))
        if shared > most:
            best, most = sentence, shared
    return best or _NOTHING


def _stems(text: str) -> set[str]:
    found = (word.casefold() for word in words(text))
    return {word[:_BEGINNING] for word in found if word not in _COMMON}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
