"""The extractive answerer quotes, in both frameworks, what shares most words with the question."""

from __future__ import annotations

import sys

import pytest
from langchain_core.messages import HumanMessage

from ragopt.demo.answerer import PROMPT, ChatModelAnswerer, ExtractiveAnswerer, quote
from ragopt.demo.langchain_arms import AnswererModel
from ragopt.demo.llama_index_arms import AnswererLLM
from ragopt.errors import InvalidInput

CONTEXT = """os.walk(top): Directory tree generator. It yields a tuple for each directory.

shutil.copytree(src, dst): Recursively copy a directory tree and return the destination."""
QUESTION = "How do I copy a whole directory tree?"
ANSWER = "shutil.copytree(src, dst): Recursively copy a directory tree and return the destination."


def test_the_sentence_with_the_most_shared_words() -> None:
    assert quote(QUESTION, CONTEXT) == ANSWER
    assert quote("What does it yield?", CONTEXT) == "It yields a tuple for each directory."


def test_the_first_of_several_that_share_as_many() -> None:
    assert quote("x", "One b. Two b.") == "One b."
    assert quote("b", "One b. Two b.") == "One b."


def test_japanese() -> None:
    assert quote("東京の人口は？", "大阪は西にある。東京の人口は多い。") == "東京の人口は多い。"


def test_nothing_in_the_context() -> None:
    assert quote(QUESTION, "") == "The documents say nothing about this."


def test_both_frameworks_answer_alike() -> None:
    prompt = PROMPT.format(context=CONTEXT, question=QUESTION)
    answerer = ExtractiveAnswerer()
    assert AnswererModel(answerer=answerer).invoke([HumanMessage(prompt)]).text == ANSWER
    assert AnswererLLM(answerer).complete(prompt).text == ANSWER


def test_a_question_within_the_context_is_not_the_question() -> None:
    context = f"{CONTEXT}\n\nQuestion: what is this?"
    assert ExtractiveAnswerer().complete(
        PROMPT.format(context=context, question=QUESTION)
    ) == quote(QUESTION, context)


def test_a_model_that_is_not_there_is_a_sentence() -> None:
    pytest.importorskip("langchain")
    with pytest.raises(InvalidInput, match="The model 'nobody:nothing' cannot be used"):
        ChatModelAnswerer("nobody:nothing")


def test_without_langchain_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langchain.chat_models", None)
    with pytest.raises(InvalidInput, match="pip install langchain"):
        ChatModelAnswerer("openai:gpt-4o-mini")
