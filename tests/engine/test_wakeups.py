"""Event loops are woken once for what is due together, and closed ones do no harm."""

from __future__ import annotations

import asyncio
import threading
from unittest.mock import Mock

from corral.engine.wakeups import Wakeups


async def set_from_a_thread(wakeups: Wakeups, count: int) -> int:
    """Wakes so many futures; gives how many calls the loop got for them."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(count)]
    calls = Mock(wraps=loop.call_soon_threadsafe)
    loop.call_soon_threadsafe = calls  # type: ignore[method-assign]

    def wake_all() -> None:
        for future in futures:
            wakeups.wake(future)

    thread = threading.Thread(target=wake_all)
    thread.start()
    thread.join()  # the loop can't answer between them
    await asyncio.gather(*futures)
    return calls.call_count


def test_one_call_wakes_all_that_are_due() -> None:
    assert asyncio.run(set_from_a_thread(Wakeups(), 64)) == 1


def test_each_loop_is_woken() -> None:
    wakeups = Wakeups()
    assert [asyncio.run(set_from_a_thread(wakeups, 3)) for _ in range(3)] == [1, 1, 1]


def test_a_future_that_was_cancelled_leaves_the_others_alone() -> None:
    async def run() -> None:
        wakeups, loop = Wakeups(), asyncio.get_running_loop()
        given_up, other = loop.create_future(), loop.create_future()
        given_up.cancel()
        wakeups.wake(given_up)
        wakeups.wake(other)
        await other

    asyncio.run(run())


def test_a_closed_loop_is_passed_over() -> None:
    wakeups, closed = Wakeups(), asyncio.new_event_loop()
    future = closed.create_future()
    wakeups.wake(future)  # scheduled, but never run
    closed.close()
    wakeups.wake(future)
    wakeups.wake(future)
    assert asyncio.run(set_from_a_thread(wakeups, 2)) == 1
