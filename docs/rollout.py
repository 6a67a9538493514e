"""What may happen to the chart's pods, with real processes: `python -m docs.rollout`.

The gateway as the chart configures it asks a DNS server for the Tritons of the headless service; each Triton is the
chart's container, `serve`, at an address of its own. Callers ask over HTTP and gRPC without a pause and never twice,
while one Triton is slow, one is killed, one is added, one goes as a pod goes, and all are replaced by a new version.
The command prints for each act the requests sent, those that failed, and the seconds that it took. Pods have cores of
their own in a cluster; here all processes are started before the first act, and an address is told in its turn.
"""

import json
import math
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dnslib import QTYPE, RCODE, RR, A, DNSRecord

from alexnet_triton.client import Classifier, ClassifierError
from alexnet_triton.common.command import Parser, UserError, finish, positive_float
from alexnet_triton.common.files import write_json
from alexnet_triton.serving.launch import free_port
from tests.docker.gateway import Gateway, make_secrets
from tests.kubernetes.chart import Document, find, pod_of, render, values, with_value
from tests.serving.tiny import jpeg, publication, publish

PROGRAM = Path(sys.executable).parent / "alexnet-triton"
HOST, SCHEMES = "127.0.0.1", ("https", "grpcs")
PODS = 3
VERSIONS = (PODS + 1) * [0] + (PODS - 1) * [1]  # of each pod in the order of their starts: one comes and two go before
START_TIMEOUT_S = 120.0
# kubeadm's Corefile: https://kubernetes.io/docs/tasks/administer-cluster/dns-custom-nameservers/
DNS_CACHE_S = 30.0
TRACE_S = 0.05


@dataclass(frozen=True)
class Settings:
    """Seconds that are not the chart's, and values of the chart that are not its own.

    Attributes:
        dns_cache_s: how long the cluster's DNS goes on telling what it has told.
        resolve_s: between two questions of a gateway; None is its own setting.
        callers: of each scheme.
        chart: values, named as `helm --set` names them.
    """

    dns_cache_s: float = DNS_CACHE_S
    resolve_s: int | None = None
    callers: int = 3
    chart: dict[str, int] = field(default_factory=dict)


# ---- the cluster's DNS


class ClusterDns:
    """Tells the addresses of a headless service's pods; what it has told once, it tells for `cache_s`."""

    def __init__(self, name: str, cache_s: float) -> None:
        self.ready: list[str] = []
        self._name, self._cache_s = name, cache_s
        self._told: list[str] = []
        self._told_at = -math.inf
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, sock = self.request
                sock.sendto(outer.answer(data), self.client_address)

        self._server = socketserver.UDPServer((HOST, 0), Handler)
        self.address = f"{HOST}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def answer(self, question: bytes) -> bytes:
        """The answer to a question, both in DNS's wire format."""
        query = DNSRecord.parse(question)
        reply = query.reply()
        addresses = self._addresses() if str(query.q.qname).rstrip(".") == self._name else []
        for address in addresses if query.q.qtype == QTYPE.A else []:
            reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(address), ttl=int(self._cache_s)))
        if not addresses:
            reply.header.rcode = RCODE.NXDOMAIN
        return bytes(reply.pack())

    def _addresses(self) -> list[str]:
        if time.monotonic() - self._told_at >= self._cache_s:
            self._told, self._told_at = list(self.ready), time.monotonic()
        return self._told

    def __enter__(self) -> "ClusterDns":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


# ---- pods


class Pod:
    """The chart's container of Triton, as a process with its own address, temporary folder and copy of the models."""

    def __init__(
        self, number: int, ports: dict[str, int], deployment: Document, repository: Path, folder: Path
    ) -> None:
        self.address = f"127.88.0.{number}"
        self._pod = pod_of(deployment)
        self._folder = folder / f"pod-{number}"
        self._environment = {**os.environ, "TMPDIR": str(self._folder)}
        shutil.copytree(repository, self._folder / "artifacts/model_repository")
        (container,) = self._pod["containers"]
        given = [word.replace("/artifacts", str(self._folder / "artifacts")) for word in container["args"]]
        for name, number in ports.items():
            given += [f"--{name}-port", str(number)]
        self.log = self._folder / "triton.log"
        words = ["--host", self.address, "--log", self.log, "--start-timeout", str(START_TIMEOUT_S), *given]
        with (self._folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [PROGRAM, "serve", *words], env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )

    def wait_until_ready(self) -> None:
        """Until the chart's probe says so.

        Raises:
            UserError: it ended instead.
        """
        output = self._folder / "output.txt"
        while "Ready: " not in output.read_text():
            if self.process.poll() is not None:
                raise UserError(f"a pod did not start: {output.read_text().splitlines()[-1]}")
            time.sleep(TRACE_S)
        probe = self._pod["containers"][0]["readinessProbe"]["exec"]["command"]
        while subprocess.run([PROGRAM, *probe[1:]], env=self._environment, stdout=subprocess.DEVNULL).returncode:
            time.sleep(1)

    def triton(self) -> int:
        """Tritonserver's process id, from the state that `status` reads too."""
        (state,) = self._folder.glob("*/*/run.json")
        return int(json.loads(state.read_text())["tritonserver"])

    def leave(self) -> bool:
        """End as a pod ends: preStop, SIGTERM, SIGKILL after the grace period; whether it ended by itself, with 0."""
        sleep_s = self._pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        time.sleep(sleep_s)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self._pod["terminationGracePeriodSeconds"] - sleep_s) == 0
        except subprocess.TimeoutExpired:
            self.kill()
            return False

    def kill(self) -> None:
        """As a node that is lost: nothing is answered any more, and Triton ends with its watcher."""
        if self.process.poll() is None:
            with suppress(ValueError, OSError):  # it has no Triton yet
                os.kill(self.triton(), signal.SIGKILL)
            self.process.kill()
            self.process.wait()

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Its Triton stands still."""
        pid = self.triton()
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


# ---- callers


class Callers:
    """They ask without a pause, and never twice, from `with` to its end."""

    def __init__(self, gateway: Gateway, count: int) -> None:
        """`count` of each scheme."""
        self.outcomes: Counter[str] = Counter()
        self._over = threading.Event()
        settings: dict[str, Any] = {"headers": gateway.headers(), "tls": gateway.tls, "retries": 0, "timeout_s": 60}
        self._classifiers = [Classifier(gateway.url(scheme), concurrency=count, **settings) for scheme in SCHEMES]
        self._threads = [
            threading.Thread(target=self._ask, args=(classifier, jpeg(seed)))
            for classifier in self._classifiers
            for seed in range(count)
        ]

    def _ask(self, classifier: Classifier, image: bytes) -> None:
        while not self._over.is_set():
            try:
                classifier.classify(image)
                outcome = "answered"
            except ClassifierError as error:
                outcome = f"{type(error).__name__}: {error}"
            self.outcomes[outcome] += 1

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for classifier in self._classifiers:
            classifier.close()


# ---- the cluster


@dataclass(frozen=True)
class Act:
    """What happened, while so many requests were sent, and which addresses answered them."""

    name: str
    sent: int
    failed: int
    seconds: float
    answered: dict[str, int] = field(default_factory=dict)


Report = Callable[[Act], None]  # hears of an act that is over


class ChartGateway(Gateway):
    """The gateway with the chart's variables; ports are of this machine, and its DNS is the cluster's."""

    def __init__(self, documents: list[Document], secrets: Path, log: Path, ports: dict[str, int], **ours: str) -> None:
        super().__init__(secrets, log, [], [])
        (container,) = pod_of(find(documents, "Deployment", "gateway"))["containers"]
        self.environment |= {each["name"]: each["value"] for each in container["env"]} | ours
        for name in ("http", "grpc"):
            host = self.environment[f"TRITON_{name.upper()}"].partition(":")[0]
            self.environment[f"TRITON_{name.upper()}"] = f"{host}:{ports[name]}"
        self.service = self.environment["TRITON_HTTP"].partition(":")[0]


class Cluster:
    """A Deployment of Triton, its service's DNS, and the gateway before it."""

    def __init__(self, folder: Path, settings: Settings, report: Report) -> None:
        given = values("cpu")
        for name, value in settings.chart.items():
            given = with_value(given, name, value)
        documents = render(given)
        self.deployment = find(documents, "Deployment", "triton")
        self.pods: list[Pod] = []
        self.acts: list[Act] = []
        self.every: list[Pod] = []  # ended ones too
        self.orderly: list[bool] = []  # of every pod that was ended: whether it needed no SIGKILL
        self._report, self._settings = report, settings
        self._ports = {name: free_port() for name in ("http", "grpc", "metrics")}
        ours = {"GATEWAY_RESOLVE_S": str(settings.resolve_s)} if settings.resolve_s else {}
        self.gateway = ChartGateway(
            documents, make_secrets(folder / "secrets"), folder / "access.jsonl", self._ports, **ours
        )
        self.dns = ClusterDns(self.gateway.service, settings.dns_cache_s)
        self.gateway.environment["GATEWAY_RESOLVER"] = self.dns.address
        self._folder, self._repositories = folder, [build_version(folder / f"version-{seed}", seed) for seed in (0, 1)]
        self._stack = ExitStack()

    def __enter__(self) -> "Cluster":
        with ExitStack() as stack:
            stack.callback(self._kill_all)
            for number, version in enumerate(VERSIONS, 1):
                self.every.append(Pod(number, self._ports, self.deployment, self._repositories[version], self._folder))
            self._coming = iter(self.every)
            self.add(PODS)
            stack.enter_context(self.dns)
            self.gateway.key()
            stack.enter_context(self.gateway)
            self.callers = stack.enter_context(Callers(self.gateway, self._settings.callers))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _kill_all(self) -> None:
        for pod in self.every:
            pod.kill()

    def add(self, count: int) -> None:
        """The next pods: their addresses are told once the probe says that they are ready."""
        made = [next(self._coming) for _ in range(count)]
        for pod in made:
            pod.wait_until_ready()
        self.pods += made
        self._tell()

    def remove(self, *gone: Pod) -> None:
        """Take pods out of the service and the Deployment."""
        self.pods = [pod for pod in self.pods if pod not in gone]
        self._tell()

    def _tell(self) -> None:
        self.dns.ready = [pod.address for pod in self.pods]

    def end(self, *pods: Pod) -> None:
        """End pods in order, at the same time."""
        self.remove(*pods)
        threads = [threading.Thread(target=lambda pod=pod: self.orderly.append(pod.leave())) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def settle(self) -> None:
        """Wait as long as the Deployment takes a new pod for one that is not yet available."""
        time.sleep(self.deployment["spec"]["minReadySeconds"])

    @contextmanager
    def act(self, name: str) -> Iterator[None]:
        """Count what the callers send meanwhile."""
        before, began, wall = self.callers.outcomes.copy(), time.monotonic(), time.time()
        yield
        outcomes, seconds = self.callers.outcomes - before, time.monotonic() - began
        failed = outcomes.total() - outcomes["answered"]
        self.acts.append(Act(name, outcomes.total(), failed, round(seconds, 1), self._answered(wall)))
        self._report(self.acts[-1])

    def _answered(self, since: float) -> dict[str, int]:
        """Answers by the address that gave them, from the gateway's log."""
        entries = (entry for entry in self.gateway.entries() if entry["unix_seconds"] >= since)
        return dict(sorted(Counter(tries(entry)[-1].partition(":")[0] for entry in entries).items()))


def build_version(folder: Path, seed: int) -> Path:
    """A repository of the tests' small network; each seed is another one."""
    folder.mkdir()
    publish(folder / "model_repository", publication(folder, seed))
    return folder / "model_repository"


def tries(entry: dict[str, Any]) -> list[str]:
    """The Tritons that a request was sent to; nginx writes commas between tries, and a colon before @grpc_again's."""
    return str(entry["triton"]).replace(" : ", ", ").split(", ")


def surge(share: str, replicas: int) -> int:
    """Pods of maxSurge, rounded up: https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#max-surge"""
    return math.ceil(int(share.rstrip("%")) * replicas / 100)


# ---- the acts


def slow(cluster: Cluster) -> None:
    """Longer than the gateway waits for an answer."""
    wait_s = int(cluster.gateway.environment["GATEWAY_TIMEOUT_S"])
    with cluster.pods[0].slow():
        time.sleep(wait_s + 2)


def killed(cluster: Cluster) -> None:
    """Its address is told until its node is known to be lost; here as long as a pod would have to go."""
    cluster.pods[1].kill()
    cluster.settle()
    cluster.remove(cluster.pods[1])


def added(cluster: Cluster) -> None:
    cluster.add(1)
    cluster.settle()


def drained(cluster: Cluster) -> None:
    cluster.end(cluster.pods[1])


def rolled(cluster: Cluster) -> None:
    """By the Deployment's strategy: never fewer pods than before, and at most maxSurge more."""
    rolling = cluster.deployment["spec"]["strategy"]["rollingUpdate"]
    old = list(cluster.pods)
    assert rolling["maxUnavailable"] == 0, "the acts end an old pod for each new one"
    more = surge(rolling["maxSurge"], len(old))
    for first in range(0, len(old), more):
        going = old[first : first + more]
        cluster.add(len(going))
        cluster.settle()
        cluster.end(*going)


ACTS: dict[str, Callable[[Cluster], None]] = {
    "one is slow": slow,
    "one is killed": killed,
    "one is added": added,
    "one is drained": drained,
    "a new version": rolled,
}


def play(folder: Path, settings: Settings, report: Report) -> Cluster:
    """All acts, one after the other; the cluster that was, with its acts and its gateway's log.

    Raises:
        UserError: a pod did not start.
    """
    with Cluster(folder, settings, report) as cluster:
        for name, act in ACTS.items():
            with cluster.act(name):
                act(cluster)
    return cluster


# ---- the command


def main(words: Sequence[str] | None = None) -> int:
    """Exit status: 0 no request failed and every pod ended in order, 1 one did not, 2 usage."""
    parser = Parser(prog="python -m docs.rollout", description=__doc__.partition("\n")[0])
    parser.add_argument("--pre-stop", type=int, metavar="SECONDS", help="instead of the chart's preStopSeconds")
    parser.add_argument(
        "--dns-cache",
        type=positive_float,
        default=DNS_CACHE_S,
        metavar="SECONDS",
        help="how long the cluster's DNS keeps a name (default: 30, as kubeadm has it)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    chart = {"triton.preStopSeconds": options.pre_stop} if options.pre_stop else {}
    settings = Settings(dns_cache_s=options.dns_cache, chart=chart)
    return finish("rollout", lambda: _play(settings, options.json))


def _play(settings: Settings, file: Path | None) -> int:
    print(f"{'act':16}{'sent':>8}{'failed':>8}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as folder:
        cluster = play(Path(folder), settings, _print)
    if file:
        write_json(file, {"settings": asdict(settings), "acts": [asdict(act) for act in cluster.acts]})
    for outcome, number in cluster.callers.outcomes.items():
        if outcome != "answered":
            print(f"{number}x {outcome}")
    return int(any(act.failed for act in cluster.acts) or not all(cluster.orderly))


def _print(act: Act) -> None:
    print(f"{act.name:16}{act.sent:8,}{act.failed:8,}{act.seconds:9.1f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
