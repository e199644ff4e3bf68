"""The same question of many at one time: all pages that show a list ask for it anew when something changes."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

Answer = TypeVar("Answer")
# Who waits for one that takes longer asks beside it.
_PATIENCE_SECONDS: Final = 0.1


class Joined:
    """Asks a question once for all who want to know at the same time. Of one event loop.

    Nobody is told what was asked before he came: who comes while it is being asked shares the answer of the next time.
    So the answer is as new as one of his own would be.
    """

    def __init__(self) -> None:
        self._gathering: dict[Hashable, asyncio.Task[Any]] = {}
        self._asking: dict[Hashable, asyncio.Task[Any]] = {}

    async def get(self, question: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return what `ask`, or that of another who has the same question, returns, or raise what it raises."""
        task = self._gathering.get(question)
        if task is None:
            task = self._gathering[question] = asyncio.create_task(self._ask(question, ask))
            # All may have left.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        # Who leaves does not take it from the others.
        answer: Answer = await asyncio.shield(task)
        return answer

    async def _ask(self, question: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        this = self._gathering[question]
        try:
            if (before := self._asking.get(question)) is not None:
                await asyncio.wait((before,), timeout=_PATIENCE_SECONDS)
        finally:
            # From here on it is being asked.
            del self._gathering[question]
        self._asking[question] = this
        try:
            return await ask()
        finally:
            if self._asking.get(question) is this:
                del self._asking[question]
