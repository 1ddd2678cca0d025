"""Objects made from stored fields without validation are those that the class itself makes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, Generation
from pydantic import BaseModel, PrivateAttr

from ragopt._again import Again
from ragopt.errors import InvalidInput
from ragopt.langchain.plain import from_plain, to_plain

CALL: Any = {"name": "search", "args": {"q": "a", "k": 3}, "id": "call_1", "type": "tool_call"}
PIECE: Any = {
    "name": "search",
    "args": '{"q": ',
    "id": "call_1",
    "index": 0,
    "type": "tool_call_chunk",
}
USAGE: Any = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}

OBJECTS: list[Any] = [
    AIMessage(content=""),
    AIMessage(content="text", id="1", usage_metadata=USAGE, response_metadata={"model": "m"}),
    AIMessage(content=[{"type": "text", "text": "a"}, "b"], tool_calls=[CALL]),
    AIMessage(content="text", additional_kwargs={"refusal": None, "audio": {"id": 1}}, name="x"),
    AIMessageChunk(content="te", tool_call_chunks=[PIECE], chunk_position="last"),
    AIMessageChunk(content="", usage_metadata=USAGE),
    ChatMessage(content="text", role="critic"),
    HumanMessage(content=[{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}]),
    SystemMessage(content="text", extra_field=1),
    ToolMessage(content="text", tool_call_id="1", status="error", artifact={"rows": [1, 2]}),
    Document(page_content="text", id="1", metadata={"page": 3}),
    Document(page_content=""),
]


@pytest.mark.parametrize("original", OBJECTS, ids=lambda each: type(each).__name__)
def test_what_comes_back_is_what_the_class_makes(original: Any) -> None:
    again = from_plain(to_plain(original))
    assert type(again) is type(original)
    assert again == original
    assert repr(again) == repr(original)
    assert again.model_dump() == original.model_dump()
    assert again.model_dump_json() == original.model_dump_json()
    assert pickle.loads(pickle.dumps(again)) == original
    assert copy.deepcopy(again) == original
    assert again.model_copy(update={"id": "other"}).id == "other"
    assert again.to_json() == original.to_json()
    if isinstance(original, AIMessageChunk):
        assert again + again == original + original


def test_what_can_be_changed_belongs_to_one_object() -> None:
    messages = Again(AIMessage(content=""))
    one, other = messages.make({"content": "a"}), messages.make({"content": "b"})
    one.additional_kwargs["key"] = 1
    one.tool_calls.append(CALL)
    assert other.additional_kwargs == {}
    assert other.tool_calls == []
    assert messages.make({"content": "c"}).tool_calls == []


def test_a_field_that_the_class_does_not_have_is_left_to_the_class() -> None:
    made = Again(AIMessage(content="")).make({"content": "a", "new_in_a_later_version": 1})
    assert made == AIMessage(content="a", new_in_a_later_version=1)
    other = Again(Generation(text="")).make({"text": "a", "new_in_a_later_version": 1})
    assert other == Generation(text="a")


class Hidden(BaseModel):
    """A class with more to it than its fields."""

    size: int = 0
    _seen: list[int] = PrivateAttr(default_factory=list)


class Prepared(BaseModel):
    """A class that does something with its fields."""

    size: int = 0
    double: int = 0

    def model_post_init(self, _: Any, /) -> None:
        self.double = self.size * 2


def test_a_class_with_more_than_fields_makes_its_objects_itself() -> None:
    hidden = Again(Hidden()).make({"size": 3})
    hidden._seen.append(1)
    assert hidden.size == 3
    assert Again(Hidden()).make({})._seen == []
    assert Again(Prepared()).make({"size": 3}).double == 6


def test_what_would_come_back_otherwise_is_refused() -> None:
    class Tokens(BaseModel):
        number: int = 3

    message = AIMessage(content="a", additional_kwargs={"tokens": Tokens()})
    with pytest.raises(InvalidInput, match="would not come back"):
        to_plain(message)

    class Own(AIMessage):
        pass

    with pytest.raises(InvalidInput, match="Own cannot be stored"):
        to_plain(Own(content="a"))


def test_a_generation_is_not_validated_again() -> None:
    """The control: what the class would refuse passes here, so whoever stores must compare."""
    made: Any = Again(ChatGeneration(message=AIMessage(content=""))).make({"message": 1, "text": 2})
    assert made.message == 1
