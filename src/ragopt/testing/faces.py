"""One test body for both colours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Face = Callable[[Any], Any]


class AsyncFace:
    """A backend whose ``name(...)`` awaits ``aname(...)`` on one event loop."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._target, f"a{name}", None)
        if method is None:  # a property, the same in both colours
            return getattr(self._target, name)
        return lambda *args, **kwargs: self._runner.run(method(*args, **kwargs))


class BothColours:
    """Gives every test a fixture ``face``, which shows a backend in one colour or the other."""

    @pytest.fixture(params=["sync", "async"])
    def face(self, request: pytest.FixtureRequest) -> Iterator[Face]:
        """Show a backend so that ``name(...)`` runs in this test's colour."""
        if request.param == "sync":
            yield lambda target: target
            return
        with asyncio.Runner() as runner:
            yield lambda target: AsyncFace(target, runner)
