"""The servers, in the order they were named, and which of them are well."""

import asyncio
from collections.abc import Callable

from client.address import Address, parse_address
from client.config import Config
from client.errors import DeadlineExceeded, NotReady, ServerError, Unreachable
from client.retry import Deadline
from client.wire import Transport

PROBE = "probe"
PROBE_TIMEOUT_S = 2.0
PROBE_PAUSE_S = 0.1
PROBE_PAUSE_CAP_S = 1.0

Connect = Callable[[Address, Config], Transport]


def connect(address: Address, config: Config) -> Transport:
    """A transport for the address's scheme; only that scheme's library is imported."""
    if address.is_grpc:
        from client.grpc_transport import GrpcTransport

        return GrpcTransport(address, config)
    from client.http_transport import HttpTransport

    return HttpTransport(address, config)


class Server:
    """One address, its transport, and whether it answered last time."""

    def __init__(self, address: Address, transport: Transport) -> None:
        self.address, self.transport = address, transport
        self.well = True
        self.generation = 0  # how often it has been lost, so that what it held is known to be gone
        self.error: ServerError | None = None
        self.probe: asyncio.Task[None] | None = None


class Pool:
    """Gives the first server that is well; a lost one is probed until it is back."""

    def __init__(self, config: Config) -> None:
        addresses = [parse_address(url) for url in config.addresses]
        self.servers = [Server(address, connect(address, config)) for address in addresses]
        self._model, self._version = config.model_name, config.version
        self._seen = False  # a server that never answered is not waited for: the address may be wrong
        self._back = asyncio.Event()

    async def pick(self, deadline: Deadline, avoid: Server | None = None) -> Server:
        """The first server that is well, another than `avoid` if there is one; waits for one that is coming back.

        Raises:
            ServerError: none is well before the deadline, or none ever was.
        """
        while True:
            well = [server for server in self.servers if server.well]
            if well:
                return next((server for server in well if server is not avoid), well[0])
            error = next(server.error for server in self.servers if server.error)
            if not self._seen or not deadline.left_s:
                raise error
            self._back.clear()
            try:
                await asyncio.wait_for(self._back.wait(), deadline.left_s)
            except asyncio.TimeoutError:
                raise error from None

    def worked(self, server: Server) -> None:
        """The server answered; who waits for one that is well need wait no longer."""
        self._seen = server.well = True
        self._back.set()

    def failed(self, server: Server, error: ServerError) -> None:
        """The server did not answer: look elsewhere, and see when it is back."""
        lost = isinstance(error, (Unreachable, NotReady))
        slow = isinstance(error, DeadlineExceeded) and len(self.servers) > 1
        if not (lost or slow):
            return
        server.error = error
        if server.well:
            server.well, server.generation = False, server.generation + 1
        if server.probe is None or server.probe.done():
            server.probe = asyncio.create_task(self._probe(server), name=PROBE)

    async def close(self) -> None:
        """Drop every connection."""
        for server in self.servers:
            if server.probe:
                server.probe.cancel()
            await server.transport.close()

    async def _probe(self, server: Server) -> None:
        pause_s = PROBE_PAUSE_S
        while not server.well:
            await asyncio.sleep(pause_s)
            pause_s = min(PROBE_PAUSE_CAP_S, pause_s * 1.5)
            try:
                await server.transport.ready(self._model, self._version, PROBE_TIMEOUT_S)
            except ServerError as error:
                server.error = error
            else:
                self.worked(server)
