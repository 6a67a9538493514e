"""What a server has."""

import json
from typing import Any

from client.config import Config
from client.labels import server_labels
from client.model import index, wait_until_ready
from client.names import printable
from client.retry import Deadline
from client.session import Session
from client.wire import Transport


async def describe(config: Config, wait_s: float, as_json: bool) -> str:
    """Server, models, versions, labels and batching, as text or JSON.

    Raises:
        ServerError: it cannot be asked.
    """
    session = Session(config)
    try:
        if wait_s:
            await wait_until_ready(session.pool, config, Deadline(wait_s))
        facts = await _facts(session, config)
    finally:
        await session.close()
    return json.dumps(facts) + "\n" if as_json else _text(facts)


async def _facts(session: Session, config: Config) -> dict[str, Any]:
    signature = (await session.inference()).signature
    server = await session.pool.pick(Deadline(config.timeout_s))
    transport = server.transport
    described = await transport.model_config(config.model_name, config.version, config.timeout_s)
    return {
        "url": str(server.address),
        "server": dict(await transport.server_metadata(config.timeout_s)),
        "models": [dict(model) for model in await index(transport, config.timeout_s)],
        "model": {
            "name": config.model_name,
            "versions": await _versions(transport, config),
            "takes": f"{signature.input} {signature.datatype} {list(signature.shape(1))[1:]}",
            "gives": f"{signature.output} FP32 [{signature.classes}]",
            "max_batch": signature.max_batch,
            "batching": _batching(described),
            "labels": await server_labels(await session.inference()),
        },
    }


async def _versions(transport: Transport, config: Config) -> list[str]:
    metadata = await transport.model_metadata(config.model_name, config.version, config.timeout_s)
    return list(metadata.get("versions", ()))


def _batching(described: Any) -> str:
    if "ensemble_scheduling" in described:
        steps = described["ensemble_scheduling"].get("step", ())
        return "ensemble of " + ", ".join(step["model_name"] for step in steps)
    dynamic = described.get("dynamic_batching")
    if dynamic is None:
        return "none"
    delay_us = int(dynamic.get("max_queue_delay_microseconds", 0))
    return f"dynamic, waiting at most {delay_us} us for more"


def _text(facts: dict[str, Any]) -> str:
    model, server = facts["model"], facts["server"]
    lines = [
        f"server    {server.get('name')} {server.get('version')} at {facts['url']}",
        *(f"model     {_state(each)}" for each in facts["models"] if each.get("state")),
        f"asked     {model['name']}, versions {', '.join(model['versions'])}",
        f"takes     {model['takes']}",
        f"gives     {model['gives']}",
        f"batching  up to {model['max_batch']}, {model['batching']}",
        f"labels    {', '.join(model['labels'])}",
    ]
    return "".join(f"{printable(line)}\n" for line in lines)


def _state(model: dict[str, Any]) -> str:
    reason = f" ({model['reason']})" if model.get("reason") else ""
    return f"{model['name']} {model.get('version', '')} {model['state']}{reason}"
