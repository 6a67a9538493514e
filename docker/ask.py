"""classify.py through the gateway of this checkout: its address, its certificate and the key of `me` are filled in.

    python docker/ask.py IMAGE... [OPTION OF classify.py]...

The key is read from its file here, and stands on no command line. GATEWAY_URL, GATEWAY_CERT, GATEWAY_KEYS and
GATEWAY_CALLER name others.
"""

import os
import re
import sys
from pathlib import Path

from alexnet_triton.client.cli import NO_SERVER
from alexnet_triton.client.cli import main as classify

ROOT = Path(__file__).resolve().parent.parent
SECRETS = ROOT / "artifacts/gateway"


def read_key(path: Path, caller: str) -> str:
    """The caller's line of nginx's map, `"Bearer KEY" NAME;`.

    Raises:
        OSError: the file cannot be read.
        LookupError: the caller has no key.
    """
    found = re.search(rf'^"Bearer (\w+)" {re.escape(caller)};$', path.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(f"{path} has no key of {caller}: make one with docker/key.sh {caller}")
    return found[1]


def main(words: list[str]) -> int:
    """Exit status: classify.py's; 3 without a key, too."""
    environment = os.environ
    try:
        keys = Path(environment.get("GATEWAY_KEYS", SECRETS / "keys"))
        key = read_key(keys, environment.get("GATEWAY_CALLER", "me"))
    except (OSError, LookupError) as error:
        print(f"ask: {error}; docker/prepare.sh makes what is missing", file=sys.stderr)
        return NO_SERVER
    url = environment.get("GATEWAY_URL", "grpcs://localhost:8443")
    certificate = environment.get("GATEWAY_CERT", str(SECRETS / "certificate.pem"))
    return classify([*words, "--url", url, "--ca", certificate, "--header", f"Authorization: Bearer {key}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
