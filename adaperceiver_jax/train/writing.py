"""Orbax's handlers, made to tell at once when something could not be written.

Orbax keeps an error of one process until all have come to the end of the save, which the others do
not: they wait for it.
"""

from __future__ import annotations

from typing import Any


class Failures(list[Exception]):
    """What went wrong in writing, in threads."""


class _Watched:
    """A future whose failure is noted."""

    def __init__(self, future: Any, failures: Failures) -> None:
        self._future, self._failures = future, failures

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._future.result(timeout=timeout)
        except Exception as error:
            self._failures.append(error)
            raise

    def cancel(self) -> Any:
        return self._future.cancel()


def telling(handler: Any, failures: Failures) -> Any:
    """The handler, which notes there what it could not write.

    Not a class of its own: Orbax knows handlers' arguments by the very class.
    """
    original = handler.async_save

    async def async_save(*args: Any, **keywords: Any) -> list[_Watched]:
        futures = await original(*args, **keywords)
        return [_Watched(future, failures) for future in futures or ()]

    handler.async_save = async_save
    return handler
