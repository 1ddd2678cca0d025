"""One custom event of LangChain for each look-up in a cache."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables.config import (
    RunnableConfig,
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
)

from ragopt._runtime import Runtime

EVENT = "ragopt_cache"
"""Name of the event. Its data: ``kind`` (such as "answer", "llm", "retrieval") and ``hit``."""


async def tell(
    io: Runtime, kind: str, *, hit: bool, config: RunnableConfig | None = None, **more: Any
) -> None:
    """Tell the handlers of the run that this look-up is a part of; nobody where there is none.

    Args:
        io: The colour.
        kind: What was looked up.
        hit: Whether the call was spared the computation.
        config: Names the run; the one around this call if None.
        more: Other data of the event.
    """
    data = {"kind": kind, "hit": hit, **more}
    await io.call(_tell, _atell, ensure_config(config), data)


# LangChain's own ``dispatch_custom_event`` raises where there is no run.


def _tell(config: RunnableConfig, data: dict[str, Any]) -> None:
    if not config.get("callbacks"):
        return
    manager = get_callback_manager_for_config(config)
    if manager.parent_run_id is not None:
        manager.on_custom_event(EVENT, data, run_id=manager.parent_run_id)


async def _atell(config: RunnableConfig, data: dict[str, Any]) -> None:
    if not config.get("callbacks"):
        return
    manager = get_async_callback_manager_for_config(config)
    if manager.parent_run_id is not None:
        await manager.on_custom_event(EVENT, data, run_id=manager.parent_run_id)
