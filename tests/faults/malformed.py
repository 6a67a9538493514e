"""Classes 1 to 13: requests that no caller should send. Each is answered as the caller's fault; nothing breaks."""

import gzip
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from alexnet_triton.common.infer_request import HEADER_LENGTH, bytes_tensor, infer_path
from tests.faults.damaged import mutate, zoo
from tests.faults.suite import Context, FaultClass, Seen, summarise
from tests.faults.wire import (
    BUSY,
    CUT,
    PATH,
    REFUSED,
    SILENT,
    Door,
    Outcome,
    Tally,
    ask,
    ask_grpc,
    grpc_request,
    infer_request,
)

TRITONS_OWN = ("HTTP 500", "HTTP 501")  # answers of Triton 2.51 to a caller's fault, documented in docker/README.md
BETWEEN = 10  # faults from one valid question to the next
MAX_BATCH_TRIED = (17, 33, 100)
GATEWAY_BODY_MIB = 16
SAFE_DEPTH = 1_000  # of nested JSON that Triton 2.51 survives; the gateway lets 9,999 bytes through, and no more


@dataclass(frozen=True)
class Raw:
    """An HTTP request as it is sent."""

    body: bytes
    headers: dict[str, str]
    path: str = PATH
    method: str = "POST"


def send_all(context: Context, requests: Iterable[Raw], doors: Sequence[Door], strict: bool = False) -> Seen:
    """Send each through each door, with valid questions between them.

    Triton answers many a caller's fault with 500 and the reason as JSON. `strict`: here even that is a failure.
    """
    tally, between = Tally(), Tally()
    problems: list[str] = []
    for request in requests:
        for door in doors:
            outcome, answer = ask(door, request.body, request.headers, request.path, request.method)
            tally.add(f"{outcome} {door.name}")
            problems += _problem(outcome, answer, door, strict)
            if tally.total % BETWEEN == 0:
                context.expect_right(tally.total, between)
    context.expect_right(0, between)
    text, others = summarise(tally, between)
    return Seen(tally.total, text, list(dict.fromkeys(problems + others)))


def _problem(outcome: Outcome, answer: bytes, door: Door, strict: bool) -> list[str]:
    if outcome in TRITONS_OWN and not strict and explains(answer):
        return []
    if outcome == "HTTP 503" and BUSY[0].encode() in answer:  # a caller may ask for a queue timeout of microseconds
        return []
    if outcome in (CUT, SILENT) or outcome.startswith("HTTP 5"):
        return [f"{outcome} {door.name}"]
    return []


def explains(answer: bytes) -> bool:
    """Whether an answer is Triton's own refusal: JSON with a reason."""
    try:
        return bool(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return False


def send_grpc(context: Context, messages: Iterable[bytes], doors: Sequence[Door]) -> Seen:
    """The same over gRPC."""
    tally, between = Tally(), Tally()
    problems: list[str] = []
    channels = [door.channel() for door in doors]
    for message in messages:
        for door, channel in zip(doors, channels, strict=True):
            outcome, _ = ask_grpc(channel, door, message)
            tally.add(f"{outcome} {door.name}")
            if outcome in (CUT, SILENT, REFUSED):
                problems.append(f"{outcome} {door.name}")
            if tally.total % BETWEEN == 0:
                context.expect_right(tally.total, between)
    for channel in channels:
        channel.close()
    text, others = summarise(tally, between)
    return Seen(tally.total, text, list(dict.fromkeys(problems + others)))


def together(*parts: Seen) -> Seen:
    """Several parts of a class as one."""
    problems = [problem for part in parts for problem in part.problems]
    return Seen(sum(part.times for part in parts), "; ".join(part.text for part in parts), problems)


def with_header(header: Any, data: bytes, path: str = PATH) -> Raw:
    """A request whose JSON is `header`, an object or text, with its right length."""
    head = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return Raw(head + data, {HEADER_LENGTH: str(len(head))}, path)


def header(size: int, **changes: Any) -> dict[str, Any]:
    """The JSON of a valid request for one image of `size` bytes, with the input's fields changed."""
    tensor = {"name": "encoded", "datatype": "BYTES", "shape": [1, 1], "parameters": {"binary_data_size": size}}
    return {"inputs": [{**tensor, **changes}], "outputs": [{"name": "probabilities"}]}


# ---- the classes


def wrong_input_name(context: Context) -> Seen:
    data = bytes_tensor(context.corpus.images[:1])
    names = ("", "encode", "images", "encoded ", "x" * 1_000, "\u202e", "../encoded", "encoded\0")
    requests = [with_header(header(len(data), name=name), data) for name in names]
    messages = []
    for name in names:
        message = grpc_request(context.corpus.images[:1])
        message.inputs[0].name = name
        messages.append(message.SerializeToString())
    return together(send_all(context, requests, context.doors), send_grpc(context, messages, context.doors))


def bytes_that_do_not_fit(context: Context) -> Seen:
    image = context.corpus.images[0]
    datas: tuple[bytes, ...] = (
        b"",
        b"\0",
        struct.pack("<I", 2**32 - 1) + image,
        struct.pack("<I", len(image) + 1) + image,
    )
    datas += (struct.pack("<I", len(image) - 1) + image, image, bytes_tensor([image, image]), struct.pack("<I", 0))
    requests = [with_header(header(len(data)), data) for data in datas]
    good = bytes_tensor([image])
    requests += [with_header(header(size), good) for size in (0, 1, len(good) - 1, len(good) + 1, 2**31, 2**63, -1)]
    pixels = {"name": "images", "datatype": "UINT8", "shape": [1, 227, 227, 3]}
    for size in (0, 1, 227 * 227 * 3 - 1, 227 * 227 * 3 + 1):
        tensor = {"inputs": [{**pixels, "parameters": {"binary_data_size": size}}]}
        requests.append(with_header(tensor, bytes(size), infer_path("alexnet")))
    messages = []
    for data in datas:
        message = grpc_request([image])
        message.raw_input_contents[0] = data
        messages.append(message.SerializeToString())
    return together(send_all(context, requests, context.doors), send_grpc(context, messages, context.doors))


def impossible_shapes(context: Context) -> Seen:
    data = bytes_tensor(context.corpus.images[:1])
    shapes: list[Any] = [
        [-1, 1],
        [2**62, 4],
        [2**63 - 1],
        [2**32, 2**32],
        [0, 1],
        [1, 0],
        [1] * 100,
        [],
        [1],
        [-(2**63), 1],
    ]
    texts: list[Any] = [[1.5, 1], ["x", 1], "1", None, [2**64, 1], [[1], 1], {"1": 1}]
    requests = [with_header(header(len(data), shape=shape), data) for shape in shapes + texts]
    messages = []
    for shape in shapes:
        message = grpc_request(context.corpus.images[:1])
        message.inputs[0].shape[:] = shape
        messages.append(message.SerializeToString())
    return together(send_all(context, requests, context.doors), send_grpc(context, messages, context.doors))


def tiny_chunks(context: Context) -> Seen:
    """Through the gateway alone: they end a Triton of 2024 (CVE-2025-23310), which is why the gateway is there."""
    image = context.corpus.images[0]
    image += bytes(max(0, context.scale.chunks - len(image)))  # what follows a JPEG's end is not looked at
    body, headers = infer_request([image])
    tally, door = Tally(), context.gateway
    lines = {**headers, **door.headers, "Host": "localhost", "Transfer-Encoding": "chunked", "Connection": "close"}
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with closing(door.connection(60)) as connection:
        connection.connect()
        assert connection.sock
        connection.sock.sendall(head.encode() + b"\r\n")
        connection.sock.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        answer = connection.sock.recv(65536)
    tally.add(answer.split(b"\r\n")[0].decode(errors="replace"))
    problems = [] if b" 200 " in answer[:20] else [f"not answered: {tally}"]
    return Seen(len(body), f"one request of {len(body):,} chunks: {tally}", problems)


def nested_json(context: Context) -> Seen:
    data = bytes_tensor(context.corpus.images[:1])
    deep = (10, SAFE_DEPTH, 4_900, 100_000, 1_000_000)
    requests = [with_header("[" * depth + "]" * depth, data) for depth in deep]
    requests += [with_header('{"a":' * depth + "1" + "}" * depth, data) for depth in deep]
    safe = [request for request in requests if len(request.body) - len(data) <= 7 * SAFE_DEPTH]
    return together(
        send_all(context, safe, context.doors[:1]), send_all(context, requests, context.doors[1:], strict=True)
    )


def too_large_or_packed(context: Context) -> Seen:
    body, headers = infer_request(context.corpus.images[:1])
    large = bytes((GATEWAY_BODY_MIB + 1) << 20)
    packed = Raw(gzip.compress(body), {**headers, "Content-Encoding": "gzip"})
    bomb = Raw(gzip.compress(bytes(64 << 20)), {**headers, "Content-Encoding": "gzip"})
    broken = Raw(b"no gzip", {**headers, "Content-Encoding": "gzip"})
    through = [packed, bomb, broken]
    seen = together(
        send_all(context, [packed, broken], context.doors[:1]), send_all(context, through, context.doors[1:])
    )
    for door in context.doors[1:]:
        outcome, _ = ask(door, large, headers)
        seen = together(seen, Seen(1, f"{GATEWAY_BODY_MIB + 1} MiB: {outcome} {door.name}"))
        if outcome not in ("HTTP 413", CUT):  # a caller that goes on writing may see the connection close
            seen.problems.append(f"{GATEWAY_BODY_MIB + 1} MiB: {outcome} {door.name}")
    return seen


def wrong_header_length(context: Context) -> Seen:
    body, headers = infer_request(context.corpus.images[:1])
    right = int(headers[HEADER_LENGTH])
    lengths = ("-1", "x", "1e3", "0x10", "9" * 40, str(len(body) + 1), str(right - 1), str(right + 1), "1", " ", "+5")
    requests = [Raw(body, {HEADER_LENGTH: length}) for length in lengths]
    return together(
        send_all(context, requests, context.doors[:1]), send_all(context, requests, context.doors[1:], strict=True)
    )


def outputs_named_twice(context: Context) -> Seen:
    data = bytes_tensor(context.corpus.images[:1])
    one, base = {"name": "probabilities"}, header(len(data))
    outputs: list[Any] = [[one, one], [one] * 1000, [{"name": "nothing"}], [{}], [one, {"name": ""}], "x", [[one]]]
    outputs += [
        [{"name": "probabilities", "parameters": {"classification": count}}] for count in (-1, 2**31, 2**63, "x")
    ]
    requests = [with_header({**base, "outputs": each}, data) for each in outputs]
    requests.append(with_header({**base, "inputs": base["inputs"] * 2}, data + data))
    message = grpc_request(context.corpus.images[:1])
    message.outputs.add(name="probabilities")
    messages = [message.SerializeToString()]
    return together(send_all(context, requests, context.doors), send_grpc(context, messages, context.doors))


def batch_too_large(context: Context) -> Seen:
    images = context.corpus.images
    requests, messages = [], []
    for count in MAX_BATCH_TRIED:
        batch = [images[number % len(images)] for number in range(count)]
        requests.append(Raw(*infer_request(batch)))
        messages.append(grpc_request(batch).SerializeToString())
    return together(
        send_all(context, requests, context.doors, strict=True), send_grpc(context, messages, context.doors)
    )


def parameters_that_are_no_numbers(context: Context) -> Seen:
    values: tuple[Any, ...] = ("x", "1", -1, 2**63, 2**64, 1.5, None, True, {}, [1], 99, "9" * 1000)
    images = context.corpus.images[:1]
    requests = [
        Raw(*infer_request(images, {name: value}))
        for name in ("priority", "timeout", "sequence_id", "binary_data_output")
        for value in values
    ]
    messages = []
    for name in ("priority", "timeout"):
        for kind, value in (("string_param", "x"), ("bool_param", True), ("int64_param", -1), ("double_param", 1.5)):
            message = grpc_request(images)
            setattr(message.parameters[name], kind, value)
            messages.append(message.SerializeToString())
    return together(send_all(context, requests, context.doors), send_grpc(context, messages, context.doors))


def image_zoo(context: Context) -> Seen:
    """Alone, and in one request with a right image; a right answer or 400, never 500."""
    animals = zoo()
    requests = [Raw(*infer_request([image])) for image in animals.values()]
    requests += [Raw(*infer_request([context.corpus.images[0], image])) for image in animals.values()]
    requests.append(Raw(*infer_request([animals["12 KB of 100 megapixels"]] * 16)))
    seen = send_all(context, requests, context.doors, strict=True)
    return Seen(seen.times, f"{len(animals)} images: {seen.text}", seen.problems)


def unknown_models(context: Context) -> Seen:
    body, headers = infer_request(context.corpus.images[:1])
    paths = [infer_path(name) for name in ("nothing", "../classify", "%2e%2e", "classify\0", "x" * 5000, "prepro cess")]
    paths += [infer_path("classify", version) for version in ("0", "99", "-1", "x", "9" * 30, "../1")]
    paths += ["/v2/models/../../etc/passwd", "/v2/models//infer", "/v2/models/classify/../classify/infer", "/v2/%00"]
    requests = [Raw(body, headers, path) for path in paths]
    requests += [Raw(b"", {}, path, "GET") for path in ("/v2/models/nothing", "/v2/models/classify/versions/99", "/..")]
    messages = []
    for name, version in (("nothing", ""), ("../classify", ""), ("", ""), ("classify", "99"), ("classify", "x")):
        message = grpc_request(context.corpus.images[:1])
        message.model_name, message.model_version = name, version
        messages.append(message.SerializeToString())
    return together(send_all(context, requests, context.doors), send_grpc(context, messages, context.doors))


# ---- class 13


def mutated_http(context: Context, count: int) -> Iterator[Raw]:
    """Valid requests, each with its JSON, its data or its header length mutated."""
    random = context.random(13)
    body, headers = infer_request([min(context.corpus.images, key=len)])
    length = int(headers[HEADER_LENGTH])
    for _ in range(count):
        head, data, said = body[:length], body[length:], None
        for _ in range(random.randrange(1, 4)):
            where = random.randrange(8)
            if where < 5:
                head = mutate(head, random)
            elif where < 7:
                data = mutate(data, random)
            else:
                said = str(random.choice((0, 1, len(head) + 1, len(body) * 2, -5, 2**40)))
        yield Raw(head + data, {HEADER_LENGTH: said or str(len(head))})


def mutated_grpc(context: Context, count: int) -> Iterator[bytes]:
    """Serialised valid messages, mutated once to three times."""
    random = context.random(1300)
    valid = grpc_request([min(context.corpus.images, key=len)]).SerializeToString()
    for _ in range(count):
        message = valid
        for _ in range(random.randrange(1, 4)):
            message = mutate(message, random)
        yield message


def mutated(context: Context) -> Seen:
    """Half of them directly, half through the gateway, where there is one."""
    scale, share = context.scale, len(context.doors)
    parts = []
    for number, door in enumerate(context.doors):
        http = [each for place, each in enumerate(mutated_http(context, scale.http)) if place % share == number]
        parts.append(send_all(context, http, [door]))
        messages = [each for place, each in enumerate(mutated_grpc(context, scale.grpc)) if place % share == number]
        parts.append(send_grpc(context, messages, [door]))
    context.mark_memory()
    again = list(mutated_http(context, max(10, scale.http // 10)))
    return together(*parts, send_all(context, again, context.doors[:1]))


CLASSES = [
    FaultClass(1, "wrong input name", "names that the model does not have, over HTTP and gRPC", wrong_input_name),
    FaultClass(2, "bytes that do not fit the shape", "too few, too many, false lengths", bytes_that_do_not_fit),
    FaultClass(3, "impossible shapes", "shapes that overflow, are negative, or no numbers", impossible_shapes),
    FaultClass(4, "tiny chunks", "a body in chunks of one byte, through the gateway", tiny_chunks),
    FaultClass(5, "nested JSON", "brackets up to a million deep; directly a thousand", nested_json),
    FaultClass(6, "too large, or gzip", "17 MiB, packed, a bomb of zeros", too_large_or_packed),
    FaultClass(7, "wrong header length", "negative, no number, longer than the body", wrong_header_length),
    FaultClass(8, "outputs named twice", "and a thousand times, unknown, no list", outputs_named_twice),
    FaultClass(9, "batch above the maximum", "17, 33 and 100 images a request", batch_too_large),
    FaultClass(10, "parameters that are no numbers", "priority, timeout and others", parameters_that_are_no_numbers),
    FaultClass(11, "image zoo", "damaged, huge, odd and no images, alone and beside a right one", image_zoo),
    FaultClass(12, "unknown models and versions", "and paths with ../", unknown_models),
    FaultClass(13, "mutated requests", "bits, slices and numbers changed, a fixed seed", mutated, repeats=False),
]
