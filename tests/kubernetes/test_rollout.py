"""The chart's gateway before real Tritons that are slow, killed, added, drained and replaced: no request fails."""

import json
from pathlib import Path

import pytest
from dnslib import RCODE, DNSRecord

from docs import rollout
from docs.rollout import Cluster, ClusterDns, Settings, tries

# Less time to wait than in a cluster; what has to be longer than what stays so: a pod goes when no gateway knows it.
HURRY = Settings(dns_cache_s=0, resolve_s=1, callers=2, chart={"triton.preStopSeconds": 3, "gateway.timeoutSeconds": 4})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """After the last act."""
    return rollout.play(tmp_path_factory.mktemp("cluster"), HURRY, lambda act: None)


def answered(cluster: Cluster, name: str) -> dict[str, int]:
    (act,) = [act for act in cluster.acts if act.name == name]
    return act.answered


@pytest.mark.long
def test_no_request_fails(cluster: Cluster) -> None:
    assert [act.name for act in cluster.acts] == list(rollout.ACTS)
    assert min(act.sent for act in cluster.acts) > 0
    assert set(cluster.callers.outcomes) == {"answered"}, cluster.gateway.errors.read_text()[-5000:]


@pytest.mark.long
def test_another_try_is_made_when_one_is_slow(cluster: Cluster) -> None:
    """HTTP's goes to another; gRPC's is a new request to the gateway's second list, where the slow one may be first."""
    entries = [(entry["protocol"], tries(entry)) for entry in cluster.gateway.entries()]
    again = [each for each in entries if len(each[1]) > 1 and each[1][0].startswith("127.88.0.1:")]
    assert {protocol for protocol, _ in again} == {"HTTP/1.1", "HTTP/2.0"}
    assert all(made[0] != made[1] for protocol, made in again if protocol == "HTTP/1.1")


@pytest.mark.long
def test_pods_that_are_there_answer_and_no_others(cluster: Cluster) -> None:
    one, two, three, four, *new = (f"127.88.0.{number}" for number in range(1, 7))
    assert four in answered(cluster, "one is added")
    assert two not in answered(cluster, "one is added")
    assert set(new) <= answered(cluster, "a new version").keys()
    assert three not in answered(cluster, "a new version")
    assert [pod.address for pod in cluster.pods] == new
    assert one in answered(cluster, "one is drained")


@pytest.mark.long
def test_pods_end_by_themselves(cluster: Cluster) -> None:
    """With status 0, after they have answered every request that they had."""
    assert cluster.orderly == 3 * [True]
    logs = [(pod.log, pod.log.read_text()) for pod in cluster.every if pod not in cluster.pods]
    assert [log for log, text in logs if "requests cut" in text] == []


def test_the_dns_keeps_what_it_has_told() -> None:
    with ClusterDns("triton.vision.svc", cache_s=1000) as dns:
        dns.ready = ["127.88.0.1", "127.88.0.2"]
        ask = DNSRecord.question("triton.vision.svc")
        assert {str(each.rdata) for each in DNSRecord.parse(dns.answer(ask.pack())).rr} == set(dns.ready)
        dns.ready = []
        assert len(DNSRecord.parse(dns.answer(ask.pack())).rr) == 2
        other = DNSRecord.parse(dns.answer(DNSRecord.question("gateway.vision.svc").pack()))
        assert other.header.rcode == RCODE.NXDOMAIN


@pytest.mark.long
def test_the_command_prints_every_act_and_fails_with_a_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, cluster: Cluster
) -> None:
    """Of a play that is over, with one failure more than it had."""
    acts = cluster.acts[:-1]

    def replay(folder: Path, settings: Settings, report: rollout.Report) -> Cluster:
        assert settings.chart == {"triton.preStopSeconds": 9}
        for act in cluster.acts:
            report(act)
        return cluster

    monkeypatch.setattr(rollout, "play", replay)
    words = ["--pre-stop", "9", "--json", str(tmp_path / "acts.json")]
    assert rollout.main(words) == 0
    assert [act["name"] for act in json.loads((tmp_path / "acts.json").read_text())["acts"]] == list(rollout.ACTS)
    assert all(f"{act.sent:,}" in capsys.readouterr().out for act in acts[:1])
    monkeypatch.setattr(cluster, "acts", [*acts, rollout.Act("a new version", sent=2, failed=1, seconds=1)])
    assert rollout.main(words) == 1
