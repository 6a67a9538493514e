"""Images handed over in system shared memory, to a server on the same machine."""

import asyncio
import mmap
import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from alexnet_triton.client.errors import NotReady, RequestRefused, ServerError, UsageError
from alexnet_triton.client.protocol import SharedMemory
from alexnet_triton.client.servers import ServerState

FOLDER = Path("/dev/shm")
PREFIX = "alexnet-classify"
LOST = re.compile(r"unable to find .*shared memory region", re.IGNORECASE)


class Slots:
    """One region of equal slots, of which every request in flight takes one.

    The region's name is removed when it is closed; names that killed processes left are removed
    when the next one is made.
    """

    def __init__(self, count: int, slot_bytes: int) -> None:
        """Raises:
        UsageError: the system has no room for it.
        """
        _sweep()
        self.name = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(4)}"
        self.slot_bytes, self._bytes = slot_bytes, count * slot_bytes
        self._map = _create(FOLDER / self.name, self._bytes)
        self._free: asyncio.LifoQueue[int] = asyncio.LifoQueue()
        for slot in reversed(range(count)):
            self._free.put_nowait(slot)
        self._known: dict[ServerState, int] = {}
        self._registering = asyncio.Lock()

    @asynccontextmanager
    async def hold(self, data: bytes) -> AsyncIterator[bytes | SharedMemory]:
        """The data in a slot, or as it is when it does not fit into one."""
        if len(data) > self.slot_bytes:
            yield data
            return
        slot = await self._free.get()
        try:
            start = slot * self.slot_bytes
            self._map[start : start + len(data)] = data
            yield SharedMemory(self.name, len(data), start)
        finally:
            self._free.put_nowait(slot)

    async def register(self, server: ServerState, timeout_s: float) -> None:
        """Make the region known to a server, once, and again when it was lost and came back.

        Raises:
            RequestRefused: the server does not allow it, or is on another machine.
        """
        async with self._registering:
            if self._known.get(server) == server.generation:
                return
            try:
                await server.transport.register(self.name, f"/{self.name}", self._bytes, timeout_s)
            except ServerError as error:
                if "already in shared memory manager" not in error.detail and "already exists" not in error.detail:
                    raise _refused(error) from None
            self._known[server] = server.generation

    def lost(self, server: ServerState, error: ServerError) -> ServerError:
        """What a refused request means: a server that was started again has forgotten the region."""
        if not LOST.search(error.detail):
            return error
        self._known.pop(server, None)
        return NotReady(error.detail, error.host, error.model)

    async def close(self) -> None:
        """Let the servers forget the region, and remove it."""
        (FOLDER / self.name).unlink(missing_ok=True)
        for server in self._known:
            try:
                await server.transport.unregister(self.name, 1.0)
            except ServerError:
                continue
        self._map.close()


def _create(file: Path, size: int) -> mmap.mmap:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        file.unlink(missing_ok=True)
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"--shm: {size:,} bytes in {FOLDER}: {reason}; lower --concurrency or --batch") from None


def _sweep() -> None:
    """Remove the regions of this user's processes that are gone."""
    for file in FOLDER.glob(f"{PREFIX}-*"):
        pid = file.name.removeprefix(f"{PREFIX}-").split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and file.stat().st_uid == os.getuid():
            file.unlink(missing_ok=True)


def _refused(error: ServerError) -> ServerError:
    if error.retryable and not error.detail.lower().count("shared"):
        return error
    hint = "leave --shm out: the server must be on this machine and allow shared memory"
    return RequestRefused(error.detail, error.host, hint=hint)
