"""Images at addresses: fetched when that is allowed, by a deadline, without the server's key."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from alexnet_triton.client import Config
from alexnet_triton.client.session import READERS, Session
from alexnet_triton.client.sources import Sources
from answers import by_torch
from commands import classify, lines
from embedded_triton import Triton
from photographs import jpeg
from web import Quiet, recording, serving


class Images(Quiet):
    """A web server with one image, and some that misbehave."""

    over = threading.Event()

    def respond(self) -> None:
        path, _, target = self.path.partition("?")
        if path == "/image":
            self.answer(200, jpeg(2))
        elif path == "/moved":
            self.answer(302, Location=target)
        elif path == "/trickle":
            self.trickle()
        elif path == "/busy":
            self.answer(503)
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.pour(b"\xff\xd8\xff" + bytes(1 << 20), 40)
        elif path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(jpeg(2)[:100])
        else:
            self.answer(404, b"no")

    def trickle(self) -> None:
        """A header without an end, byte by byte, for as long as the client listens."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not self.over.wait(0.05):
                self.wfile.write(b"x")

    def pour(self, data: bytes, times: int) -> None:
        try:
            for _ in range(times):
                self.wfile.write(data)
        except OSError:
            self.close_connection = True


@pytest.fixture
def web() -> Iterator[str]:
    Images.over.clear()
    with serving(Images) as address:
        try:
            yield address
        finally:
            Images.over.set()


def test_addresses_of_images(url: str, web: str) -> None:
    names = ["/image", "/moved?/image", "/moved?file:///etc/passwd", "/moved", "/endless", "/cut", "/busy", "/none"]
    done = classify(*(web + name for name in names), "--allow-urls", "--url", url, "--format", "json", "--timeout", 10)
    answers = {answer["path"].removeprefix(web): answer for answer in lines(done.stdout)}
    best = int(by_torch(jpeg(2)).argmax())
    assert answers["/image"]["top"][0]["index"] == answers["/moved?/image"]["top"][0]["index"] == best
    assert (
        answers["/moved?file:///etc/passwd"]["error"]
        == "redirected to file:///etc/passwd, which is no http or https address"
    )
    assert answers["/moved"]["error"] == "redirected more than 5 times"
    assert answers["/endless"]["error"] == "more than the 33,554,432 bytes allowed"
    assert "cut off" in answers["/cut"]["error"]
    assert answers["/busy"]["error"] == "HTTP status 503 [transient]"
    assert answers["/none"]["error"] == "HTTP status 404"


def test_addresses_are_not_fetched_unasked(url: str, web: str) -> None:
    done = classify(f"{web}/image", "--url", url)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"an address, not a file; --allow-urls fetches it" in done.stderr


def test_an_address_whose_headers_trickle_ends_at_the_deadline(triton: Triton, web: str) -> None:
    asked = [f"{web}/trickle", f"{web}/image", "--allow-urls", "--timeout", 2, "--format", "json"]
    slow, quick = lines(classify(*asked, "--url", triton.urls["http"], timeout_s=30).stdout)
    assert slow["error"] == "cannot be fetched: no answer within 2 s [transient]"
    assert "top" in quick


def test_addresses_that_never_answer_hold_up_no_file(triton: Triton, web: str, tmp_path: Path) -> None:
    """More of them than there are threads that read files."""
    (tmp_path / "image.jpg").write_bytes(jpeg(2))

    async def classify_beside() -> list[bool]:
        session = Session(Config(urls=(triton.urls["grpc"],), concurrency=4))
        slow = Sources((f"{web}/trickle",) * 3 * max(READERS, os.cpu_count() or 1), url_timeout_s=20)
        fetching = [asyncio.create_task(session.classify([image])) for image in slow]
        await asyncio.sleep(0.2)
        await session.classify([str(tmp_path / "image.jpg")])
        waiting = [not task.done() for task in fetching]
        for task in fetching:
            task.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)
        await session.close()
        return waiting

    assert all(asyncio.run(classify_beside()))


def test_the_servers_key_is_not_sent_to_the_host_of_an_image(triton: Triton, web: str) -> None:
    with recording() as (host, heard):
        asked = [f"{host}/image", f"{web}/moved?{host}/image", "--allow-urls", "--header", "X-Api-Key: secret"]
        assert classify(*asked, "--url", triton.urls["http"]).returncode == 1  # an empty object is no image
    assert len(heard) == 2
    assert not any("X-Api-Key" in headers for headers in heard)
