"""Questions of several at one time: nobody gets an answer that is older than his question."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from radmesh.application_server.http.joined import Joined
from radmesh.runtime.errors import RadmeshError


class Asked:
    """Answers with how often it was asked, when it is let."""

    def __init__(self) -> None:
        self.times = 0
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def ask(self) -> int:
        self.times += 1
        mine = self.times
        self.begun.set()
        await self.may_end.wait()
        return mine


def run(test: Callable[[], Awaitable[Any]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(within())


def test_who_comes_at_the_same_time_shares_and_who_comes_later_does_not() -> None:
    async def test() -> None:
        joined, asked = Joined(), Asked()
        first = [asyncio.create_task(joined.get("q", asked.ask)) for _ in range(5)]
        await asked.begun.wait()
        later = [asyncio.create_task(joined.get("q", asked.ask)) for _ in range(5)]
        asked.may_end.set()
        assert await asyncio.gather(*first) == [1] * 5
        assert await asyncio.gather(*later) == [2] * 5
        assert await joined.get("q", asked.ask) == 3
        assert not joined._gathering
        assert not joined._asking

    run(test)


def test_other_questions_are_asked_by_themselves() -> None:
    async def test() -> None:
        joined, asked = Joined(), Asked()
        both = [asyncio.create_task(joined.get(question, asked.ask)) for question in ("a", "b")]
        asked.may_end.set()
        assert sorted(await asyncio.gather(*both)) == [1, 2]

    run(test)


def test_one_that_takes_long_is_not_waited_for() -> None:
    async def test() -> None:
        joined, slow, quick = Joined(), Asked(), Asked()
        first = asyncio.create_task(joined.get("q", slow.ask))
        await slow.begun.wait()
        quick.may_end.set()
        assert await joined.get("q", quick.ask) == 1
        assert not first.done()
        slow.may_end.set()
        assert await first == 1
        assert not joined._asking

    run(test)


def test_a_failure_is_that_of_all_who_shared_it_and_of_nobody_else() -> None:
    async def test() -> None:
        joined, asked = Joined(), Asked()

        async def fail() -> int:
            await asked.ask()
            raise RadmeshError("PEER_UNAVAILABLE", "it does not answer")

        failing = [asyncio.create_task(joined.get("q", fail)) for _ in range(3)]
        await asked.begun.wait()
        well = asyncio.create_task(joined.get("q", asked.ask))
        asked.may_end.set()
        for task in failing:
            with pytest.raises(RadmeshError, match="does not answer"):
                await task
        assert await well == 2

    run(test)


def test_who_leaves_takes_it_from_nobody() -> None:
    async def test() -> None:
        joined, asked = Joined(), Asked()
        leaving = asyncio.create_task(joined.get("q", asked.ask))
        staying = asyncio.create_task(joined.get("q", asked.ask))
        await asked.begun.wait()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        asked.may_end.set()
        assert await staying == 1
        assert asked.times == 1

    run(test)
