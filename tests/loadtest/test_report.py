"""The report in a real browser, as on a phone, without a network."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from alexnet_triton.loadtest import main
from alexnet_triton.serving import Server
from tests.loadtest.stubs import Running

PHONE = {"width": 390, "height": 844}
SHORT = ("--duration", "150ms", "--warmup", "0s", "--limit", "5")


@pytest.fixture(scope="module")
def results(quick_stub: Running, tiny_server: Server, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of every kind, one of them of a real server."""
    folder = tmp_path_factory.mktemp("results")
    real = ("--url", f"http://{tiny_server.http_address}", "--duration", "2500ms")
    stub = ("--url", quick_stub.url)
    commands = {
        "run": (
            "--rate",
            "100",
            "--shape",
            "spike",
            "--slo",
            "p99=10s,rate=100000",
            "--priorities",
            "1:1,2:1",
            *SHORT,
            *real,
        ),
        "other": ("--users", "2", *SHORT),
        "sweep": ("--from", "50", "--to", "100", "--slo", "p99=10s", *SHORT),
        "compare": (
            quick_stub.url,
            quick_stub.url,
            "--pairs",
            "8",
            "--fail-if-slower",
            "900%",
            *SHORT,
            "--duration",
            "300ms",
        ),
        "mlperf": ("--scenario", "SingleStream", "--min-duration", "1s"),
    }
    for name, options in commands.items():
        target = ("--images", str(pictures), *(() if "--url" in options else stub))
        assert main([{"other": "run"}.get(name, name), *target, *options, "--output", str(folder / name)]) in (0, 1, 4)
    return folder


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Fails the test for whatever the page asks for or complains about."""
    context = browser.new_context(viewport=PHONE, offline=True)
    opened, problems = context.new_page(), list[str]()
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    yield opened
    context.close()
    assert problems == []


@pytest.mark.parametrize(
    ("name", "charts", "words"),
    [
        (
            "run",
            8,
            [
                "open loop, 100 requests/s, poisson arrivals, shape spike",
                "met",
                "missed",
                "priority 2",
                "generator's lag",
            ],
        ),
        ("other", 3, ["closed loop, 2 users"]),
        ("sweep", 4, ["The most requests a second with", "as published"]),
        ("compare", 1, ["of 8 pairs of runs"]),
        ("mlperf", 0, ["VALID", "90.00 percentile latency (ns)"]),
    ],
)
def test_each_result_has_a_page_that_fits_a_phone(
    name: str, charts: int, words: list[str], results: Path, page: Page
) -> None:
    page.goto((results / name / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.width, image.alt.length])")
    assert len(sizes) >= charts
    assert all(natural > 0 and shown <= PHONE["width"] and alt > 0 for natural, shown, alt in sizes)
    text = page.inner_text("body")
    assert [each for each in words if each not in text] == []
    assert "alexnet-triton loadtest" in text
    assert len(list((results / name).glob("*.png"))) == len(sizes)


def test_two_runs_side_by_side(results: Path, page: Page, tmp_path: Path) -> None:
    assert main(["report", str(results / "run"), str(results / "other"), "--output", str(tmp_path)]) == 0
    page.goto((tmp_path / "report.html").as_uri())
    rows = page.locator("table.spread tr").all_inner_texts()
    assert [row.split()[0] for row in rows[1:]] == ["p50", "p90", "p99", "p99.9", "answered/s"]
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_what_a_server_says_is_text(results: Path, page: Page, tmp_path: Path) -> None:
    result = json.loads((results / "run" / "result.json").read_text())
    result["title"] = "<script>document.title='owned'</script>"
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert main(["report", str(tmp_path)]) == 0
    page.goto((tmp_path / "report.html").as_uri())
    assert page.inner_text("h1") == result["title"]
    assert page.title() == result["title"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no result in"),
        ("{", "is no JSON"),
        ("{}", "is no result of this version"),
        ('{"format": 1, "kind": "run"}', "the result is not whole"),
    ],
)
def test_what_is_no_result_is_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1


def test_a_sweep_and_a_run_are_not_compared(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(results / "run"), str(results / "sweep"), "--output", str(tmp_path)]) == 2
    assert "name one, or two runs" in capsys.readouterr().err
