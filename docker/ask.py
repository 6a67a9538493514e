"""`alexnet-triton classify` through the gateway of this checkout, with its address, certificate and key filled in.

    python docker/ask.py IMAGE... [OPTION OF classify]...

The key of `me` is read from its file and is on no command line. GATEWAY_URL, GATEWAY_CERT, GATEWAY_KEYS and
GATEWAY_CALLER name others.
"""

import os
import re
import sys
from pathlib import Path

from alexnet_triton.client.cli import main as classify
from alexnet_triton.client.errors import NO_SERVER
from alexnet_triton.common.command import complain

SECRETS = Path(__file__).resolve().parent.parent / "artifacts/gateway"


def main(words: list[str]) -> int:
    """Exit code: that of `classify`; 3 without a key, too."""
    setting = os.environ.get
    keys, caller = Path(setting("GATEWAY_KEYS", SECRETS / "keys")), setting("GATEWAY_CALLER", "me")
    text = keys.read_text() if os.access(keys, os.R_OK) else ""
    key = re.search(rf'^"Bearer (\w+)" {re.escape(caller)};$', text, re.MULTILINE)
    if key is None:
        complain("ask", f"no key of {caller} in {keys}: make it with docker/prepare.sh or docker/key.sh {caller}")
        return NO_SERVER
    url = setting("GATEWAY_URL", "grpcs://localhost:8443")
    certificate = setting("GATEWAY_CERT", str(SECRETS / "certificate.pem"))
    return classify([*words, "--url", url, "--ca", certificate, "--header", f"Authorization: Bearer {key[1]}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
