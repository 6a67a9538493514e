"""Finding the model on the server."""

import asyncio
from collections.abc import Sequence

from client.config import Config
from client.dispatch import Dispatcher
from client.errors import ModelNotFound, RequestRefused, ServerError, SignatureMismatch
from client.messages import words_of_model
from client.pool import Pool, Server
from client.retry import Deadline
from client.signature import Signature, read_signature
from client.wire import Json, Transport

POLL_S = 0.1
POLL_TIMEOUT_S = 2.0


async def find_model(dispatcher: Dispatcher, config: Config) -> Signature:
    """What the configured model takes and gives.

    Raises:
        ModelNotFound, SignatureMismatch: the message lists what the server has.
        ServerError: it cannot be asked.
    """

    async def ask(server: Server, timeout_s: float) -> Signature:
        return await _read_signature(server.transport, config, timeout_s)

    return (await dispatcher.send(ask, Deadline(config.timeout_s))).value


async def wait_until_ready(pool: Pool, config: Config, deadline: Deadline) -> None:
    """Ask until one of the servers has the model ready.

    Raises:
        ServerError: why the first server has not, when the time is over.
    """
    while True:
        answers = await asyncio.gather(*(_ask_ready(server, config, deadline) for server in pool.servers))
        if None in answers:
            return
        if deadline.left_s < POLL_S:
            raise next(error for error in answers if error)
        await asyncio.sleep(POLL_S)


async def index(transport: Transport, timeout_s: float) -> Sequence[Json]:
    """`name`, `version` and `state` of the server's models; of those that are ready, where the index is closed.

    Raises:
        ServerError: it cannot be asked.
    """
    try:
        return await transport.index(timeout_s)
    except ServerError:  # restricted, as this project's own server has it
        return [{**each, "state": "READY"} for each in await transport.statistics(timeout_s)]


async def inventory(transport: Transport, timeout_s: float) -> str:
    """What the server has, for the message about what it has not."""
    try:
        models = await index(transport, timeout_s)
    except ServerError:
        return "see what it serves with `alexnet-classify info`"
    names = [f"{each['name']} (version {each['version']})" for each in models if each.get("state") == "READY"]
    return f"this server has {', '.join(names)}" if names else "this server has no model that is ready"


async def _ask_ready(server: Server, config: Config, deadline: Deadline) -> ServerError | None:
    timeout_s = max(0.05, min(deadline.left_s, POLL_TIMEOUT_S))
    try:
        await server.transport.ready(config.model_name, config.version, timeout_s)
    except ServerError as error:
        return error
    return None


async def _read_signature(transport: Transport, config: Config, timeout_s: float) -> Signature:
    deadline = Deadline(timeout_s)
    try:
        described = await transport.model_config(config.model_name, config.version, timeout_s)
        signature = read_signature(described, transport.host)
    except (ModelNotFound, RequestRefused) as error:
        hint = await inventory(transport, max(deadline.left_s, 0.1))
        raise ModelNotFound(words_of_model(error.detail), error.host, hint=hint) from None
    except SignatureMismatch as error:
        hint = f"{error.hint}; {await inventory(transport, max(deadline.left_s, 0.1))}"
        raise SignatureMismatch(error.detail, error.host, error.model, hint) from None
    if config.send not in ("auto", signature.kind):
        hint = f"use --send {signature.kind}, or name another with --model"
        raise SignatureMismatch(
            f"it takes {signature.kind}, not {config.send}", transport.host, config.model_name, hint
        )
    return signature
