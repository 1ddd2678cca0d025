"""Objects of pydantic classes, made again from the fields that they had."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

M = TypeVar("M")


class Again(Generic[M]):
    """Makes objects of one pydantic class from stored fields, without validating them again.

    The fields come from an object that was validated when it was first made; whoever stores them
    compares with it what is made here. Validating again would be a third of the time of a hit.
    Where there is more to an object than its fields (private ones, fields that this version of
    the class does not have), the class itself makes it.

    Args:
        blank: An object of the class: fields that are left out are as here.
    """

    def __init__(self, blank: M) -> None:
        self.cls = type(blank)
        self._extra = getattr(blank, "__pydantic_extra__", None)
        whole = getattr(self.cls, "__pydantic_post_init__", "") is None and not self._extra
        self._blank = dict(vars(blank)) if whole else None
        # What can be changed must belong to one object alone.
        self._own = [(name, type(x)) for name, x in vars(blank).items() if type(x) in (dict, list)]

    def make(self, fields: dict[str, Any]) -> M:
        """Return an object with these fields, whose values are its own from now on."""
        blank = self._blank
        if blank is None or not fields.keys() <= blank.keys():
            return self.cls(**fields)
        values = blank | fields  # in the order of the class, which is seen when it is printed
        for name, kind in self._own:
            if name not in fields:
                values[name] = kind()
        made = self.cls.__new__(self.cls)
        # What pydantic's model_construct does; but that one takes 300 µs for a message.
        fill = object.__setattr__
        fill(made, "__dict__", values)
        fill(made, "__pydantic_fields_set__", set(fields))
        fill(made, "__pydantic_extra__", None if self._extra is None else {})
        fill(made, "__pydantic_private__", None)
        return made
