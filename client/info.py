"""`alexnet-classify info`: the server's models, versions and labels; and the caller's own labels in their place."""

import json
from pathlib import Path
from typing import Any

from alexnet_triton.client.config import Config
from alexnet_triton.client.errors import UsageError
from alexnet_triton.client.images import blank
from alexnet_triton.client.protocol import Classification, Json
from alexnet_triton.client.servers import Deadline
from alexnet_triton.client.session import Inference, Session, list_models
from alexnet_triton.common.command import printable

SHOWN = 20


async def describe(config: Config, wait_s: float, as_json: bool) -> str:
    """Server, models, versions, labels and batching, as text or JSON.

    Raises:
        ServerError: it cannot be asked.
    """
    session = Session(config)
    try:
        if wait_s:
            await session.wait(wait_s)
        facts = await _facts(session, config)
    finally:
        await session.close()
    return json.dumps(facts) + "\n" if as_json else _text(facts)


async def _facts(session: Session, config: Config) -> dict[str, Any]:
    inference = await session.inference()
    signature, endpoint = inference.signature, await session.pool.pick(Deadline(config.timeout_s))
    transport = endpoint.transport
    described = await transport.model_config(config.model_name, config.version, config.timeout_s)
    return {
        "url": str(endpoint.address),
        "server": dict(await transport.server_metadata(config.timeout_s)),
        "models": [dict(model) for model in await list_models(transport, config.timeout_s)],
        "model": {
            "name": config.model_name,
            "versions": list(await transport.model_versions(config.model_name, config.timeout_s)),
            "takes": f"{signature.input} {signature.datatype} {list(signature.shape(1))[1:]}",
            "gives": f"{signature.output} FP32 [{signature.classes}]",
            "max_batch": signature.max_batch,
            "batching": _batching(described),
            "labels": await server_labels(inference),
        },
    }


def _batching(described: Json) -> str:
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


async def server_labels(inference: Inference) -> list[str]:
    """The labels in the order of the classes. Triton gives labels only with answers, so a blank picture is classified.

    Raises:
        ServerError: the picture was not classified.
    """
    (outcome,) = await inference.run([blank(inference.signature)], top=inference.signature.classes)
    assert isinstance(outcome, Classification)
    return [label.label for label in sorted(outcome.top, key=lambda label: label.index)]


async def read_labels(file: str, session: Session) -> tuple[str, ...]:
    """The lines of a file, one for each class in the order of the model's output.

    Raises:
        UsageError: it cannot be read or has another number of lines; the message lists the server's labels.
        ServerError: the model cannot be asked.
    """
    inference = await session.inference()
    classes, model = inference.signature.classes, session.config.model_name
    try:
        labels = tuple(Path(file).read_text(encoding="utf-8").rstrip("\n").splitlines())
        reason = "" if len(labels) == classes else f"{len(labels)} names for the {classes} classes of {model!r}"
    except UnicodeDecodeError:
        labels, reason = (), "not UTF-8 text"
    except OSError as error:
        labels, reason = (), (error.strerror or str(error)).lower()
    if reason:
        own = await server_labels(inference)
        more = f" and {len(own) - SHOWN:,} more" if len(own) > SHOWN else ""
        raise UsageError(f"--labels {file}: {reason}; without it they are {', '.join(own[:SHOWN])}{more}")
    return labels
