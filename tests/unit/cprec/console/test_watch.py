"""Watchers get all parts, then those that changed; a look that fails is told, and tried again."""

import asyncio
import threading
from collections.abc import Mapping

from cluster.errors import RunError
from cprec.console.watch import PROBLEM, Watch


class Scene:
    """What is looked at."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {"a": b"1", "b": b"2"}
        self.error: Exception | None = None
        self.looks = 0

    def look(self) -> Mapping[str, bytes]:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return dict(self.parts)


async def _follow(scene: Scene) -> list[dict[str, bytes | None]]:
    watch = Watch(scene.look, 0.01)
    heard: list[dict[str, bytes | None]] = []
    stream = watch.follow()
    heard.append(dict(await anext(stream)))
    scene.parts = {"a": b"1", "b": b"3"}
    heard.append(dict(await anext(stream)))
    late = watch.follow()
    heard.append(dict(await anext(late)))
    await late.aclose()
    assert watch.is_watched
    del scene.parts["a"]
    heard.append(dict(await anext(stream)))
    scene.error = RunError("damaged")
    heard.append(dict(await anext(stream)))
    scene.error = None
    heard.append(dict(await anext(stream)))
    await stream.aclose()
    assert not watch.is_watched
    looks = scene.looks
    await asyncio.sleep(0.1)
    assert scene.looks <= looks + 1
    return heard


def test_each_watcher_hears_what_is_new_to_it() -> None:
    assert asyncio.run(_follow(Scene())) == [
        {"a": b"1", "b": b"2", PROBLEM: b"null"},
        {"b": b"3"},
        {"a": b"1", "b": b"3", PROBLEM: b"null"},
        {"a": None},
        {PROBLEM: b'"damaged"'},
        {PROBLEM: b"null"},
    ]


async def _hurry() -> int:
    scene = Scene()
    watch = Watch(scene.look, 600)
    stream = watch.follow()
    await anext(stream)
    scene.parts["a"] = b"9"
    watch.hurry()
    assert await anext(stream) == [("a", b"9")]
    await stream.aclose()
    return scene.looks


def test_what_was_done_is_looked_at_without_waiting() -> None:
    assert asyncio.run(_hurry()) == 2


def test_who_comes_after_a_look_ahead_does_not_wait_for_another_one() -> None:
    looks, goes_on = 0, threading.Event()

    def look() -> Mapping[str, bytes]:
        nonlocal looks
        looks += 1
        assert looks == 1 or goes_on.wait(60)
        return {"a": b"%d" % looks}

    async def come() -> list[dict[str, bytes | None]]:
        watch = Watch(look, 0.01)
        await watch.look_ahead()
        stream = watch.follow()
        first = dict(await anext(stream))
        goes_on.set()
        second = dict(await anext(stream))
        await stream.aclose()
        return [first, second]

    assert asyncio.run(come()) == [{"a": b"1", PROBLEM: b"null"}, {"a": b"2"}]
