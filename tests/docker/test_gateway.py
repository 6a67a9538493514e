"""What goes through the gateway, and what does not."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from alexnet_triton.client import Classifier
from alexnet_triton.client.errors import Unsupported
from alexnet_triton.common.infer_request import HEADER_LENGTH
from alexnet_triton.loadtest.replay import read_log
from alexnet_triton.serving import Server
from tests.docker.gateway import GRPC, INFER, ROOT, Gateway, infer_request
from tests.serving.tiny import jpeg
from tests.test_readme import find_commands

SCHEMES = {"https": "http", "grpcs": "grpc"}


def direct_url(server: Server, scheme: str) -> str:
    return f"http://{server.http_address}" if scheme == "https" else f"grpc://{server.grpc_address}"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_answers_are_those_of_triton(gateway: Gateway, tritons: list[Server], scheme: str) -> None:
    images = [jpeg(seed) for seed in range(40)]
    # Two at a time are never too many of a key, however late a busy machine answers.
    few = {"retries": 0, "concurrency": 2}
    with Classifier(gateway.url(scheme), headers=gateway.headers(), tls=gateway.tls, **few) as through:
        answers = [result.top for result in through.classify_many(images)]
    with Classifier(direct_url(tritons[0], scheme), retries=0) as straight:
        assert answers == [result.top for result in straight.classify_many(images)]


def test_both_tritons_are_asked(gateway: Gateway, tritons: list[Server]) -> None:
    asked = {gateway.entry(gateway.infer(jpeg(seed)))["triton"] for seed in range(8)}
    assert asked == {server.http_address for server in tritons}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_classify_command(gateway: Gateway, scheme: str, tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(jpeg(1))
    header = tmp_path / "header"
    header.write_text(f"Authorization: Bearer {gateway.key()}\n")
    command = [
        *(sys.executable, "client/classify.py", str(picture), "--format", "json", "--url", gateway.url(scheme)),
        *("--ca", gateway.ca, "--header", f"@{header}"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["top"][0]["label"] == "Trouser"


def test_labels_by_plain_curl(gateway: Gateway, tmp_path: Path) -> None:
    """The line of the README, which looks for the key where `docker/prepare.sh` has made it."""
    (line,) = [line for line in find_commands(ROOT / "docker/README.md") if "--data-binary" in line.text]
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(jpeg(1))
    command = line.text.replace("artifacts/pictures/Bag/00030.jpeg", str(picture))
    command = command.replace("https://localhost:8443", gateway.url())
    command = command.replace("artifacts/gateway/certificate.pem", gateway.ca)
    environment = os.environ | gateway.environment
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    (output,) = json.loads(done.stdout)["outputs"]
    assert len(output["data"]) == 5
    assert output["data"][0].endswith(":1:Trouser")


@contextmanager
def grpc_stub(gateway: Gateway) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    credentials = grpc.ssl_channel_credentials(Path(gateway.ca).read_bytes())
    with grpc.secure_channel(f"localhost:{gateway.port}", credentials) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def call(gateway: Gateway, method: str, request: object, key: str | None = None, **options: object) -> grpc.RpcError:
    """A gRPC call that fails."""
    with grpc_stub(gateway) as stub, pytest.raises(grpc.RpcError) as raised:
        getattr(stub, method)(request, metadata=gateway.metadata(key), **options)
    return raised.value


def grpc_infer(image: bytes) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name="classify")
    tensor = request.inputs.add(name="encoded", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(image)
    return request


@pytest.mark.parametrize("key", ["", "0" * 64, "0"])
def test_no_or_wrong_key_is_401(gateway: Gateway, key: str) -> None:
    answer = gateway.infer(jpeg(1), key=key)
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "API key" in answer.json["error"]
    error = call(gateway, "ModelInfer", grpc_infer(jpeg(1)), key)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "API key" in error.details()


CLOSED = [
    "POST /v2/repository/index",
    "POST /v2/repository/models/classify/load",
    "POST /v2/repository/models/classify/unload",
    "GET /v2/models/stats",
    "GET /v2/models/classify/stats",
    "GET /v2/systemsharedmemory/status",
    "POST /v2/systemsharedmemory/region/a/register",
    "POST /v2/cudasharedmemory/region/a/register",
    "GET /v2/logging",
    "POST /v2/logging",
    "GET /v2/trace/setting",
    "GET /v2/models/classify/trace/setting",
    "POST /v2/models/classify/generate",
    "POST /v2/models/classify/generate_stream",
    "DELETE /v2/models/classify",
    "GET /v2/models/classify/infer",
    # Read differently here and there, a path must not open more.
    "GET /v2/repository/../health/ready",
    "GET /v2/models/..%2frepository%2findex",
    "POST /v2/models/%63lassify/infer",
    "GET /v2/models/classify/ready?x=/v2/repository",
    "GET /v2//logging",
]


@pytest.mark.parametrize("request_line", CLOSED)
def test_closed_path_is_403(gateway: Gateway, request_line: str) -> None:
    method, path = request_line.split()
    body, headers = infer_request(jpeg(1)) if method == "POST" else (None, {})
    answer = gateway.ask(method, path, body, headers)
    assert (answer.status, "closed" in answer.json["error"]) == (403, True)
    assert gateway.entry(answer)["triton"] == ""


@pytest.mark.parametrize(
    "method", ["RepositoryIndex", "RepositoryModelLoad", "SystemSharedMemoryRegister", "LogSettings"]
)
def test_closed_grpc_method_is_denied(gateway: Gateway, method: str) -> None:
    error = call(gateway, method, getattr(service_pb2, f"{method}Request")())
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "closed" in error.details()


@pytest.mark.parametrize(
    "path", ["/v2", "/v2/health/ready", "/v2/health/live", "/v2/models/classify", "/v2/models/alexnet/versions/1/ready"]
)
def test_open_paths(gateway: Gateway, tritons: list[Server], path: str) -> None:
    answer = gateway.ask("GET", path)
    assert answer.status == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_is_413(gateway: Gateway, chunked: bool) -> None:
    body, headers = infer_request(jpeg(1) + bytes(17 * 2**20))
    pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
    answer = gateway.ask("POST", INFER, pieces if chunked else body, headers)
    assert (answer.status, "16 MiB" in answer.json["error"]) == (413, True)


def test_too_large_grpc_message(gateway: Gateway) -> None:
    error = call(gateway, "ModelInfer", grpc_infer(bytes(17 * 2**20)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "16 MiB" in error.details()


def test_what_would_end_a_triton_does_not_reach_it(gateway: Gateway, tritons: list[Server]) -> None:
    """Each of the first two ends tritonserver 2.51 when sent to it directly."""
    length = {"Inference-Header-Content-Length": "9"}
    form = gateway.ask("POST", INFER, jpeg(1) * 1000, {"Content-Type": "application/x-www-form-urlencoded", **length})
    nested = gateway.ask("POST", INFER, b"[" * 1_000_000)
    long_header = gateway.ask("POST", INFER, b"[" * 1_000_000, {"Inference-Header-Content-Length": "1000000"})
    packed = gateway.ask("POST", INFER, b"", {"Content-Encoding": "gzip", **length})
    assert [answer.status for answer in (form, nested, long_header, packed)] == [400, 422, 422, 415]
    for server in tritons:
        server.check()


@pytest.mark.parametrize("length", ["abc", "-1", "+9", "1.5", "0x10", "1e3", "9, 9", "007", "9" * 30, " 9 9"])
def test_header_length_that_is_no_number_is_400(gateway: Gateway, length: str) -> None:
    assert_header_length_refused(gateway, infer_request(jpeg(1))[0], length)


def test_header_length_above_the_body_is_400(gateway: Gateway) -> None:
    """All pairs of lengths around each number of digits: no more and no less is refused."""
    lengths = [0, 1, 2, 8, 9, 10, 11, 19, 20, 21, 89, 98, 99, 100, 101, 110, 111, 199, 908, 989, 990, 999, 1000, 1009]
    for body in lengths:
        for length in lengths:
            if length > body:
                assert_header_length_refused(gateway, bytes(body), str(length))
            else:
                answer = gateway.ask("POST", INFER, bytes(body), {HEADER_LENGTH: str(length)})
                assert "is no number, or above" not in answer.json["error"], (body, length)


def assert_header_length_refused(gateway: Gateway, body: bytes, length: str) -> None:
    answer = gateway.ask("POST", INFER, body, {HEADER_LENGTH: length})
    named = f"{HEADER_LENGTH} is no number, or above" in answer.json["error"]
    assert (answer.status, named) == (400, True), (len(body), length)
    assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("change", [-100, -30, -1, 1, 100])
@pytest.mark.parametrize("chunked", [False, True])
def test_json_that_ends_elsewhere_than_its_length_says_is_400(gateway: Gateway, change: int, chunked: bool) -> None:
    """Triton says 500."""
    body, headers = infer_request(jpeg(1))
    assert_json_refused(gateway, body, {HEADER_LENGTH: str(int(headers[HEADER_LENGTH]) + change)}, chunked)


@pytest.mark.parametrize(
    "json",
    [
        b"{",
        b"{}",
        b'{"inputs":{}}',
        b"[]",
        b"1",
        b"null",
        b'"x"',
        b"{'a': 1}",
        b"{}x",
        b"\xff",
        b'{"inputs":[],"id":"\\ud83d\\ud83d\\ude00"}',
        b"[" * 9000 + b"]" * 900,
    ],
)
@pytest.mark.parametrize("behind", [b"", b"image"])
def test_json_that_cannot_be_read_is_400(gateway: Gateway, json: bytes, behind: bytes) -> None:
    assert_json_refused(gateway, json + behind, {HEADER_LENGTH: str(len(json))} if behind else {})


def test_json_in_chunks_longer_than_the_body_is_400(gateway: Gateway) -> None:
    assert_json_refused(gateway, b"{}", {HEADER_LENGTH: "3"}, chunked=True)


@pytest.mark.parametrize("text", ["é\u2028\U0001f600", "\\u0000 \\ud83d\\ude00", '\\"}{', "\\\\ud800"])
def test_json_of_any_text_is_read(gateway: Gateway, text: str) -> None:
    body, headers = infer_request(jpeg(1))
    length = int(headers[HEADER_LENGTH])
    head = body[:1] + f' "id" : "{text}", '.encode() + body[1:length]
    assert gateway.ask("POST", INFER, head + body[length:], {HEADER_LENGTH: str(len(head))}).status == 200


def assert_json_refused(gateway: Gateway, body: bytes, headers: dict[str, str], chunked: bool = False) -> None:
    answer = gateway.ask("POST", INFER, iter([body]) if chunked else body, headers)
    assert (answer.status, "does not begin with a JSON object" in answer.json["error"]) == (400, True), answer


def test_compressed_grpc_is_refused(gateway: Gateway) -> None:
    error = call(gateway, "ModelInfer", grpc_infer(bytes(1000)), compression=grpc.Compression.Gzip)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_client_does_not_repeat_what_is_closed(gateway: Gateway) -> None:
    packed = {**gateway.headers(), "Content-Encoding": "gzip"}
    with (
        Classifier(gateway.url("https"), headers=packed, tls=gateway.tls) as classifier,
        pytest.raises(Unsupported, match="compressed requests are closed"),
    ):
        classifier.classify(jpeg(1))


def test_refusals_of_triton_come_through(gateway: Gateway) -> None:
    answer = gateway.infer(b"no image")
    assert (answer.status, "not a JPEG" in answer.json["error"]) == (400, True)
    assert "not a JPEG" in call(gateway, "ModelInfer", grpc_infer(b"no image")).details()
    # This one is headers alone, without a message before them.
    unknown = call(gateway, "ModelConfig", service_pb2.ModelConfigRequest(name="nobody"))
    assert (unknown.code(), "nobody" in unknown.details()) == (grpc.StatusCode.NOT_FOUND, True)


def test_log_has_the_request_and_no_secret(gateway: Gateway) -> None:
    gateway.infer(jpeg(1), key="0123456789abcdef" * 4)
    answer = gateway.infer(jpeg(1))
    entry = gateway.entry(answer)
    assert (entry["caller"], entry["status"], entry["path"], entry["method"]) == ("me", 200, INFER, "POST")
    assert entry["id"] == answer.headers["X-Request-Id"]
    assert entry["bytes_in"] > len(jpeg(1))
    assert entry["seconds"] >= 0
    written = gateway.log.read_text() + gateway.errors.read_text()
    assert gateway.key() not in written
    assert "0123456789abcdef0123" not in written
    assert "JFIF" not in written


def test_the_log_says_when_each_request_came(gateway: Gateway, tmp_path: Path) -> None:
    """Of HTTP's and gRPC's; one without a key is in the log too, and none to replay."""
    known, started_s = len(gateway.entries()), time.time()
    for scheme in SCHEMES:
        with Classifier(gateway.url(scheme), headers=gateway.headers(), tls=gateway.tls) as classifier:
            classifier.classify(jpeg(1))
    gateway.entry(gateway.infer(jpeg(1), key="0" * 64))
    ended_s = time.time()
    new = [entry for entry in gateway.entries()[known:] if entry["path"] in (INFER, f"{GRPC}/ModelInfer")]
    arrivals_s = [entry["unix_seconds"] - entry["seconds"] for entry in new]
    assert [entry["status"] for entry in new] == [200, 200, 401]
    assert all(started_s - 0.01 < each < ended_s for each in arrivals_s)  # nginx looks at the clock now and then
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{json.dumps(entry)}\n" for entry in new))
    recording = read_log(log)
    assert recording.arrivals_s.tolist() == pytest.approx([0, arrivals_s[1] - arrivals_s[0]], abs=1e-6)
    assert all(len(jpeg(1)) < each < len(jpeg(1)) + 2000 for each in recording.bytes_in)
    assert read_log(gateway.log).damaged == 0


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/v2/" + "x" * 9000, 414)])
def test_error_pages_are_json(gateway: Gateway, path: str, status: int) -> None:
    answer = gateway.ask("GET", path)
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
    assert answer.json["error"]


def test_page_has_its_headers(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/", key="")
    assert answer.status == 200
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_grpc_path_for_http(gateway: Gateway) -> None:
    """A gRPC path asked as plain HTTP is answered, not hung on."""
    answer = gateway.ask("POST", f"{GRPC}/ModelInfer", b"", key="")
    assert answer.headers["grpc-status"] == "16"
