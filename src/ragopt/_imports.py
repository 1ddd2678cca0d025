"""Optional packages, loaded when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ragopt.errors import MissingDependency


def require(module: str, extra: str) -> Any:
    """Import ``module``, or say which extra brings it.

    Args:
        module: Dotted module name, such as ``"faiss"`` or ``"redis.asyncio"``.
        extra: Name of the ragopt extra that installs it.

    Raises:
        MissingDependency: The package is not installed. An import error *inside* an installed
            package is passed on as it is: it is another fault with another remedy.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingDependency(package, extra) from error
