"""Any function with its results cached."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from ragopt import keys
from ragopt.cache.freshness import TimeToLive
from ragopt.cache.keeping import Documents
from ragopt.cache.lineage import Lineage
from ragopt.cache.values import ValueCache
from ragopt.errors import InvalidInput, UnkeyableValue
from ragopt.protocols import KVStore

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class CachedFunction(Protocol[P, T_co]):
    """A function as ``cached`` returns it: the function itself, and a few names on it."""

    values: ValueCache
    """Where the results are; ``values.cache.stats`` counts."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Return the result for these arguments, computed once for all who ask now."""
        ...

    def forget(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the result for these arguments; return whether there was one."""
        ...

    def clear(self) -> None:
        """Forget every result."""
        ...


class CachingDecorator(Protocol):
    """What ``cached`` returns: turns a function into a cached one."""

    def __call__(self, function: Callable[P, T], /) -> CachedFunction[P, T]:
        """Return the function with its results cached."""
        ...


def cached(
    cache: KVStore | None = None,
    *,
    name: str | None = None,
    key: Callable[..., object] | None = None,
    ttl: TimeToLive = 3_600,
    version: str = "",
    lineage: Lineage | None = None,
    documents: Documents | None = None,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
    namespace: str = "default",
    tenant: str | None = None,
) -> CachingDecorator:
    """Cache the results of a function, sync or async.

    All who call it with the same arguments at the same time, in any thread, task or process that
    shares the store, wait for one computation. An exception is not kept.

    Args:
        cache: A ``TieredCache`` or a store; one in memory of its own if None.
        name: What identifies the function; its module and qualified name if None.
        key: Takes the function's arguments and returns what the result depends on. By default
            that is all arguments, defaults included: ``f(1)`` and ``f(x=1)`` are the same.
        ttl: Seconds that a result is kept, None until it is evicted, or a ``Freshness``.
        version: Change it when the function changes: older results are then out of reach.
        lineage: Follows the documents that a result was made from.
        documents: Names them, where ragopt cannot note them by itself.
        encode: Turns a result into strings, numbers, lists and dicts, if it is something else.
            A result without such a form is returned and not kept.
        decode: Turns that form back.
        namespace: Separates applications which share a store.
        tenant: Separates customers of one application.

    Returns:
        The decorator. The function gets ``values``, ``forget(*args)`` and ``clear()``.

    Raises:
        InvalidInput: It decorates a generator, or something that is no function.
        UnkeyableValue: At a call: no key can be made of an argument, such as the ``self`` of a
            method. It is refused rather than turned into a string: two different objects may
            print alike.

    Examples:
        >>> @cached(cache, ttl=600)
        ... def summary(text: str, length: int = 100) -> str: ...
    """

    def decorate(function: Callable[P, T], /) -> CachedFunction[P, T]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidInput(
                f"{function.__qualname__} yields its results one by one.",
                fix="Decorate a function that returns them as a list.",
            )
        if not inspect.isfunction(function):
            raise InvalidInput(
                f"A {type(function).__name__} was decorated.",
                fix="Put @cached next to the function itself, below other decorators.",
            )
        forms = {form: f for form, f in (("encode", encode), ("decode", decode)) if f}
        values = ValueCache(
            "function",
            cache,
            ttl=ttl,
            settings=(name or f"{function.__module__}.{function.__qualname__}", version),
            lineage=lineage,
            namespace=namespace,
            tenant=tenant,
            **forms,
        )
        signature = inspect.signature(function)

        def payload(*args: Any, **kwargs: Any) -> object:
            if key is not None:
                return ("key", key(*args, **kwargs))
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return ("arguments", dict(bound.arguments))

        def checked(*args: Any, **kwargs: Any) -> bytes:
            found = payload(*args, **kwargs)
            try:
                return keys.encode(found)
            except UnkeyableValue as error:
                raise UnkeyableValue(
                    f"{function.__qualname__} was called with an argument that no key can be "
                    f"made of. {error.problem}",
                    fix="Pass key=, a function of the arguments that returns strings or numbers.",
                ) from error

        wrapper: Any
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                return await values.aget_or_compute(
                    checked(*args, **kwargs),
                    lambda: function(*args, **kwargs),
                    documents=documents,
                )
        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return values.get_or_compute(
                    checked(*args, **kwargs),
                    lambda: function(*args, **kwargs),
                    documents=documents,
                )

        wrapper.values = values
        wrapper.forget = lambda *args, **kwargs: values.delete(checked(*args, **kwargs))
        wrapper.clear = values.clear
        return cast("CachedFunction[P, T]", wrapper)

    return decorate
