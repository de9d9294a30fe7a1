"""A disk that fails at the n-th operation, for tests: full, broken, read-only, or without power.

Only operations that change something below one folder count. Nothing is really synced.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FOREVER = 1 << 30

_ERRNO = {"full": errno.ENOSPC, "broken": errno.EIO, "read-only": errno.EROFS}
_NEEDS_NO_ROOM = ("unlink", "ftruncate", "fsync")


class Died(BaseException):
    """The process is dead: nothing that it would still do reaches the disk."""


class FailingDisk:
    """What happens to the operations below a folder.

    Attributes:
        kind: "full" (half of a write fits), "broken", "read-only", "killed", or "power cut", which
            also takes back the names that no sync of their folder made durable.
        fails_at: Number of the first operation that fails, from 0; -1: none does.
        lasts: Number of operations that fail.
        operations: Names of the operations so far.
        is_dead: Whether the process has died.
    """

    def __init__(self, folder: Path, kind: str = "", fails_at: int = -1, lasts: int = 3) -> None:
        self.kind, self.fails_at, self.lasts = kind, fails_at, lasts
        self.operations: list[str] = []
        self.is_dead = False
        self._folder = str(folder)
        self._paths: dict[int, Path] = {}
        self._undo: dict[Path, list[Callable[[], None]]] = {}
        names = ("open", "close", "write", "fsync", "ftruncate", "replace", "link", "unlink")
        self._real = {name: getattr(os, name) for name in (*names, "mkdir")}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Lets the disk fail as long as a `with` block runs."""
        with pytest.MonkeyPatch.context() as patch:
            for name in self._real:
                patch.setattr(os, name, getattr(self, f"_{name}"))
            yield

    def revive(self) -> None:
        """Starts the machine again, with a disk that is well."""
        self.is_dead, self.fails_at = False, -1
        self._undo.clear()

    def _is_mine(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self._folder)

    def _fails(self, name: str, path: Any) -> bool:
        """Counts an operation; returns whether the process dies in it, or a write is short."""
        if self.is_dead:
            raise Died
        number = len(self.operations)
        self.operations.append(name)
        if not 0 <= self.fails_at <= number < self.fails_at + self.lasts:
            return False
        if self.kind not in _ERRNO:
            return True
        if self.kind == "full" and name in _NEEDS_NO_ROOM:
            return False
        if self.kind == "full" and name == "write":
            return True
        number = _ERRNO[self.kind]
        raise OSError(number, os.strerror(number))  # without a name, as of a write

    def _die(self) -> None:
        self.is_dead = True
        if self.kind == "power cut":
            for undos in self._undo.values():
                for undo in reversed(undos):
                    undo()
        raise Died

    def _do(self, name: str, path: Any, *arguments: Any, **named: Any) -> Any:
        """Does an operation on a path; the process dies before it, if it is to die here."""
        if self._is_mine(path) and self._fails(name, path):
            self._die()
        return self._real[name](*arguments, **named)

    def _do_name(self, name: str, source: Any, target: Any) -> None:
        """Does an operation that gives a file a name; the process dies after it."""
        if not self._is_mine(target):
            self._real[name](source, target)
            return
        path = Path(target)
        dies = self._fails(name, path)
        before = path.read_bytes() if path.is_file() else None
        self._real[name](source, target)
        self._undo.setdefault(path.parent, []).append(lambda: self._restore(path, before))
        if dies:
            self._die()

    def _restore(self, path: Path, content: bytes | None) -> None:
        if path.exists():
            self._real["unlink"](path)
        if content is not None:
            path.write_bytes(content)

    def _open(self, path: Any, flags: int, *rest: Any, **named: Any) -> int:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        counted = path if writes else None
        descriptor: int = self._do("open", counted, path, flags, *rest, **named)
        if self._is_mine(path):
            self._paths[descriptor] = Path(path)
        return descriptor

    def _close(self, descriptor: int) -> None:
        self._paths.pop(descriptor, None)
        self._real["close"](descriptor)

    def _write(self, descriptor: int, content: Any) -> int:
        path = self._paths.get(descriptor)
        if path is None or not self._fails("write", path):
            return int(self._real["write"](descriptor, content))
        if len(content) < 2 and self.kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = int(self._real["write"](descriptor, bytes(content)[: len(content) // 2]))
        if self.kind != "full":
            self._die()
        return written

    def _fsync(self, descriptor: int) -> None:
        path = self._paths.get(descriptor)
        if path is None:
            self._real["fsync"](descriptor)
        elif self._fails("fsync", path):
            self._die()
        else:
            self._undo.pop(path, None)

    def _ftruncate(self, descriptor: int, size: int) -> None:
        self._do("ftruncate", self._paths.get(descriptor), descriptor, size)

    def _replace(self, source: Any, target: Any, **named: Any) -> None:
        self._do_name("replace", source, target)

    def _link(self, source: Any, target: Any, **named: Any) -> None:
        self._do_name("link", source, target)

    def _unlink(self, path: Any, **named: Any) -> None:
        self._do("unlink", path, path, **named)

    def _mkdir(self, path: Any, *rest: Any, **named: Any) -> None:
        self._do("mkdir", path, path, *rest, **named)
