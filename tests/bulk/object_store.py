"""A server that speaks as much of S3 as reading needs: objects, parts of them, and lists. Buckets are folders."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def object_store(buckets: Mapping[str, Path]) -> Iterator[str]:
    """Serve folders as buckets on a free port of this machine; the server's address.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html and API_ListObjectsV2.html
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            place = urlsplit(self.path)
            bucket, _, key = unquote(place.path).lstrip("/").partition("/")
            if bucket not in buckets:
                self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            elif key:
                self._object(buckets[bucket] / key)
            else:
                asked = {name: values[0] for name, values in parse_qs(place.query).items()}
                self._answer(200, _list(buckets[bucket], asked.get("prefix", ""), asked.get("delimiter", "")))

        def _object(self, path: Path) -> None:
            if not path.is_file():
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                return
            content, wanted = path.read_bytes(), self.headers.get("Range", "").removeprefix("bytes=")
            if not wanted:
                self._answer(200, content)
                return
            first, _, last = wanted.partition("-")
            end = min(int(last or len(content)), len(content) - 1)
            chosen = {"Content-Range": f"bytes {first}-{end}/{len(content)}"}
            self._answer(206, content[int(first) : end + 1], chosen)

        def _answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            given = {"Content-Length": str(len(content)), "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
            for name, value in {**given, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _list(folder: Path, prefix: str, delimiter: str) -> bytes:
    found, common = [], set()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        key = path.relative_to(folder).as_posix()
        if not key.startswith(prefix):
            continue
        if delimiter and delimiter in key[len(prefix) :]:
            common.add(prefix + key[len(prefix) :].split(delimiter)[0] + delimiter)
            continue
        size = path.stat().st_size
        changed = "<LastModified>2025-01-01T00:00:00.000Z</LastModified>"
        found.append(f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size>{changed}</Contents>")
    folders = "".join(f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>" for each in sorted(common))
    count = f"<KeyCount>{len(found) + len(common)}</KeyCount><IsTruncated>false</IsTruncated>"
    return f"<ListBucketResult>{count}{''.join(found)}{folders}</ListBucketResult>".encode()
