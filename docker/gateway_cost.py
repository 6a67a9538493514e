"""Images a second at many connections: Triton directly, and through its gateway. With wrk."""

import re
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from measured_gateway import INFER, Gateway, MeasureError, Settings

from serving import Server

IMAGES = 64


def write_requests(images: Path, folder: Path) -> int:
    """Requests in Triton's binary protocol as files 0, 1, ...; returns the JSON header's length, which all share.

    Raises:
        MeasureError: no images.
    """
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:IMAGES]
    if not files:
        raise MeasureError(f"no images in {images}: `make demo` makes artifacts/pictures")
    heads = set()
    for number, path in enumerate(files):
        image = path.read_bytes()
        # The length is padded so that every header is equally long.
        tensor = (
            f'{{"name":"encoded","shape":[1,1],"datatype":"BYTES",'
            f'"parameters":{{"binary_data_size":{len(image) + 4:>9}}}}}'
        )
        head = f'{{"inputs":[{tensor}],"outputs":[{{"name":"probabilities"}}]}}'.encode()
        heads.add(len(head))
        (folder / str(number)).write_bytes(head + struct.pack("<I", len(image)) + image)
    (length,) = heads
    return length


def wrk_script(folder: Path, count: int, header_length: int, key: str) -> Path:
    """Each request the next image."""
    script = folder / "wrk.lua"
    script.write_text(
        f"""local requests, at = {{}}, 0
function init()
  for number = 0, {count - 1} do
    local file = io.open("{folder}/" .. number, "rb")
    requests[number] = wrk.format("POST", "{INFER}", {{["Inference-Header-Content-Length"] = "{header_length}",
      ["Authorization"] = "Bearer {key}"}}, file:read("*a"))
    file:close()
  end
end
function request()
  at = (at + 1) % {count}
  return requests[at]
end
"""
    )
    return script


def wrk(url: str, script: Path, settings: Settings, seconds: int) -> float:
    """Answers a second.

    Raises:
        MeasureError: an answer was not 200, or there was none.
    """
    command = ["wrk", "-t1", f"-c{settings.connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if problem := re.search(r"Non-2xx.*|Socket errors.*", output):
        raise MeasureError(f"{url}: {problem[0]}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found
    return float(found[1])


def measure_cost(server: Server, gateway: Gateway, folder: Path, settings: Settings) -> dict[str, Any]:
    """Images a second, directly and through the gateway, in turn."""
    requests = folder / "requests"
    requests.mkdir()
    length = write_requests(settings.images, requests)
    script = wrk_script(requests, len(list(requests.iterdir())), length, gateway.key)
    urls = {"direct": f"http://{server.http_address}", "gateway": gateway.url}
    for url in urls.values():
        wrk(url, script, settings, max(2, settings.seconds // 4))
    rounds = []
    for number in range(settings.rounds):
        order = list(urls) if number % 2 == 0 else list(reversed(urls))
        rounds.append({side: wrk(urls[side], script, settings, settings.seconds) for side in order})
        print(f"round {number + 1}: " + ", ".join(f"{side} {rounds[-1][side]:.1f}/s" for side in urls), file=sys.stderr)
    medians = {side: statistics.median(each[side] for each in rounds) for side in urls}
    ratios = [each["gateway"] / each["direct"] for each in rounds]
    cost = 1 - statistics.median(ratios)
    return {"rounds": rounds, "median_per_s": medians, "costs_percent": round(100 * cost, 1)}
