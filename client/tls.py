"""Certificates: reading and checking them, and finding out why a TLS handshake fails."""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from alexnet_triton.client.config import Address, Tls
from alexnet_triton.client.errors import TlsError, UsageError

ALERT_WAIT_S = 1.0  # TLS 1.3 refuses a client certificate after the client's side of the handshake is over
# OpenSSL's verification errors (openssl-verification-options(1)) that have a remedy of their own.
EXPIRED, NOT_YET, HOSTNAME, ADDRESS = 10, 9, 62, 64
VERDICTS: Mapping[int, tuple[str, str]] = {
    EXPIRED: ("its certificate has expired", "whoever runs the server must renew it"),
    NOT_YET: ("its certificate is not valid yet", "see that the clocks here and there are right"),
    HOSTNAME: ("its certificate is for another host", "name the host that it is for with --url"),
    ADDRESS: ("its certificate is for another address", "name the host that it is for with --url"),
}
UNTRUSTED = "its certificate is signed by an authority that is not trusted here", "give that authority with --ca"
OTHER_CERT = "give one with --cert and --key whose authority the server trusts"
WANTS_CERT = "give one with --cert and --key"


def make_context(tls: Tls) -> ssl.SSLContext:
    """A client's settings for the handshake; without `ca` the system's authorities are trusted.

    Raises:
        UsageError: a file cannot be read, or is no certificate or key.
    """
    if tls.key and not tls.cert:
        raise UsageError("--key is given without --cert, the certificate that it belongs to")
    for option, file in (("--ca", tls.ca), ("--cert", tls.cert), ("--key", tls.key)):
        read(option, file)
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except ssl.SSLError:
        raise UsageError(f"--ca {tls.ca}: no certificate in PEM in it") from None
    if tls.cert:
        try:
            context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
        except ssl.SSLError:
            both = f"--cert {tls.cert}" + (f" and --key {tls.key}" if tls.key else "")
            raise UsageError(f"{both}: not a certificate and its unencrypted key in PEM") from None
    return context


def pem(tls: Tls) -> tuple[bytes | None, bytes | None, bytes | None]:
    """The contents of the files of authorities, key and certificate, as gRPC takes them.

    Raises:
        UsageError: as `make_context`; gRPC itself would abort the process.
    """
    make_context(tls)
    authorities = tls.ca or ssl.get_default_verify_paths().cafile
    return read("--ca", authorities), read("--key", tls.key or tls.cert), read("--cert", tls.cert)


def read(option: str, file: str | None) -> bytes | None:
    """The contents of a file that an option names.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return Path(file).read_bytes() if file else None
    except OSError as error:
        raise UsageError(f"{option} {file}: {(error.strerror or str(error)).lower()}") from None


async def explain(address: Address, tls: Tls, timeout_s: float) -> TlsError | None:
    """Try a handshake with a server and return why it fails; None if TLS is not the reason."""
    context = make_context(tls)
    if address.is_grpc:
        context.set_alpn_protocols(["h2"])
    try:
        opening = asyncio.open_connection(address.host, address.port, ssl=context)
        reader, writer = await asyncio.wait_for(opening, timeout_s)
    except ssl.SSLCertVerificationError as error:
        detail, hint = VERDICTS.get(error.verify_code, UNTRUSTED)
        return TlsError(detail, address.authority, hint=hint)
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            plain = f"{address.scheme.rstrip('s')}://{address.authority}"
            return TlsError("it does not speak TLS", address.authority, hint=f"ask it with --url {plain}")
        return TlsError(f"the TLS handshake failed: {error.reason or error}", address.authority)
    except (OSError, asyncio.TimeoutError):
        return None
    try:
        return await _refusal(reader, address, tls)
    finally:
        writer.transport.abort()


async def _refusal(reader: asyncio.StreamReader, address: Address, tls: Tls) -> TlsError | None:
    """The error if the server ends the connection before it is asked: it wants a client certificate, or another."""
    with suppress(asyncio.TimeoutError):
        try:
            if await asyncio.wait_for(reader.read(1), ALERT_WAIT_S):
                return None
        except OSError:
            pass
        if tls.cert:
            return TlsError(f"it does not accept the certificate {tls.cert}", address.authority, hint=OTHER_CERT)
        return TlsError(
            "it ends the connection, as servers do that want a client certificate", address.authority, hint=WANTS_CERT
        )
    return None
