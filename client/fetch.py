"""Images from http and https addresses, bounded in size and time."""

import http.client
import ssl
import time
import urllib.error
import urllib.request

from client.errors import BadImage

CHUNK_BYTES = 1 << 16
AGENT = "alexnet-classify"


def fetch(address: str, timeout_s: float) -> bytes:
    """Download an image of at most `imaging.MAX_BYTES`; at most ten redirections, to http and https alone.

    Raises:
        BadImage: it is not there, too large, or was not here in time.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        request = urllib.request.Request(address, headers={"User-Agent": AGENT})
        with _opener().open(request, timeout=timeout_s) as response:
            return _read(response, deadline_s, timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        raise BadImage(f"HTTP status {error.code}") from None
    except urllib.error.URLError as error:
        raise BadImage(f"cannot be fetched: {_reason(error.reason)}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BadImage(f"cannot be fetched: {_reason(error)}") from None


def _read(response: http.client.HTTPResponse, deadline_s: float, timeout_s: float) -> bytes:
    from imaging import MAX_BYTES

    content = bytearray()
    while chunk := response.read1(CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_BYTES:
            raise BadImage(f"more than the {MAX_BYTES:,} bytes allowed")
        if time.monotonic() > deadline_s:
            raise BadImage(f"not fetched within {timeout_s:g} s")
    if response.length:
        raise BadImage("cut off: the connection ended before the image did")
    return bytes(content)


def _opener() -> urllib.request.OpenerDirector:
    """Without the handlers for file: and ftp:, to which an address could be redirected."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error or type(error).__name__).lower()
