"""How far long work is: told to a function of the caller's, or drawn as a bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, TypeAlias

from ragopt._imports import require

Progress: TypeAlias = Callable[[int, int | None], None]
"""Called with what is done, and with how much there is in all; None where nobody knows."""

_EXTRA = "transformers"


class Tally:
    """Counts what is done, and tells it.

    Args:
        tell: Whom to tell.
        total: How much there is in all; None where nobody knows.
    """

    def __init__(self, tell: Progress, total: int | None) -> None:
        self._tell: Progress | None = tell
        self._total = total
        self._done = 0

    def add(self, number: int) -> None:
        """Count so many more. What the caller's function raises is raised as it is."""
        self._done += number
        if self._tell is not None:
            self._tell(self._done, self._total)

    def close(self) -> None:
        """Tell nobody any more: the thread of a task that was cancelled may still be at work."""
        self._tell = None


@contextmanager
def tallied(progress: Progress | bool, total: int | None, model: str) -> Iterator[Tally | None]:
    """Count texts for a function of the caller's, for a bar if True; None if for nobody."""
    if progress is False:
        yield None
        return
    with _bar(desc=model, unit=" texts") as drawn:
        tally = Tally(drawn if progress is True else progress, total)
        try:
            yield tally
        finally:
            tally.close()


@contextmanager
def download_bar(model: str) -> Iterator[Progress]:
    """Draw a bar of a download if stderr is a terminal."""
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
    with _bar(desc=model, disable=None, **options) as drawn:  # None: unless on a terminal
        yield drawn


def without_bar(download: Callable[..., Any]) -> dict[str, Any]:
    """Return the option that keeps ``hf_hub_download`` from drawing a bar for each file.

    Versions without that option draw them, where stderr is a terminal.
    """
    if "tqdm_class" not in signature(download).parameters:
        return {}
    bar: Any = require("huggingface_hub.utils", _EXTRA).tqdm

    class Silent(bar):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    return {"tqdm_class": Silent}


@contextmanager
def _bar(**options: Any) -> Iterator[Progress]:
    """Draw a bar from the first call on.

    It is huggingface_hub's, which draws none with ``HF_HUB_DISABLE_PROGRESS_BARS`` or after
    ``disable_progress_bars()``.
    """
    bars: list[Any] = []

    def tell(done: int, total: int | None) -> None:
        if not bars:
            bars.append(require("huggingface_hub.utils", _EXTRA).tqdm(total=total, **options))
        bars[0].update(done - bars[0].n)

    try:
        yield tell
    finally:
        for bar in bars:
            bar.close()
