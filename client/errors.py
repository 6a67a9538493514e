"""Everything that can go wrong, as one tree. No exception of gRPC's, aiohttp's or tritonclient's leaves this package.

ClassifierError
  UsageError            a wrong address, option or file of labels; the server was not asked
  BadImage              this image cannot be classified; others can
    NotFetched          the host of its address was not reached, too slow or in trouble
  ServerError           has .host and .model
    Unreachable         no connection, or it broke before the answer
      TlsError          the TLS handshake failed
    NotReady            the server or the model is loading, or has no available version
    DeadlineExceeded    no answer in time
    Overloaded          the server, or a gateway before it, refused work; .retry_after_s if it said when to come back
    BadAnswer           the bytes that came back do not answer the request
    ServerFault         the server failed inside (HTTP 5xx, gRPC INTERNAL)
    AccessDenied        the server wants credentials, or other ones
    ModelNotFound       no such model or version; the message lists what there is
    SignatureMismatch   the model does not take images, or gives no class probabilities
    RequestRefused      the server calls the request invalid: if the model takes images, the image is the cause
    Unsupported         the server, or a gateway before it, does not do what was asked
"""

import re

from alexnet_triton.common.command import USAGE, UserError

# ruff: noqa: N818 - they are named by what happened

NO_SERVER = 3  # exit code

# Triton's words for a full queue and for a request that waited in it for too long.
BUSY = re.compile(r"queue size|timeout expired|too many", re.IGNORECASE)

# What Triton puts before a model's own message.
FRAME = re.compile(
    r"^(in ensemble '[^']*', )?"
    r"(Failed to process the request\(s\) for model (instance )?'[^']*',? ?(message: )?)?"
    r"(TritonModelException: |Triton(Error|Model)[^:]*: )?"
)


class ClassifierError(UserError):
    """The message is one line: what failed, and what to do next.

    Attributes:
        transient: whether a server or the network failed, not the image: a later run may classify it.
    """

    transient = False


class UsageError(ClassifierError):
    """Called wrongly; nothing was sent."""

    exit_code = USAGE


class BadImage(ClassifierError):
    """This image cannot be classified. The message does not name the file."""


class NotFetched(BadImage):
    """The host of the image's address was not reached, was too slow or in trouble."""

    transient = True


class ServerError(ClassifierError):
    """The server or the connection failed.

    Attributes:
        retryable: whether the same request may be answered when it is sent again.
        hint: what to do next.
        retry_after_s: how long the server asked to wait, None when it did not say.
    """

    exit_code = NO_SERVER
    transient = True
    retryable = True
    hint = ""

    def __init__(
        self, detail: str, host: str = "", model: str = "", hint: str | None = None, retry_after_s: float | None = None
    ) -> None:
        """`detail` says what happened; the message puts host, model and hint around it."""
        self.detail, self.host, self.model, self.retry_after_s = detail, host, model, retry_after_s
        place = " ".join(part for part in (host, f"model {model!r}" if model else "") if part)
        advice = self.hint = self.hint if hint is None else hint
        super().__init__(": ".join(part for part in (place, detail) if part) + (f"; {advice}" if advice else ""))


# What each of them means stands in the tree above.


class Unreachable(ServerError):
    hint = "start it with `make serve`, wait for it with --wait, or name another with --url"


class TlsError(Unreachable):
    retryable = False
    hint = "give its authority with --ca, and --cert and --key where it asks for a client certificate"


class NotReady(ServerError):
    hint = "wait for it with --wait SECONDS"


class DeadlineExceeded(ServerError):
    retryable = False
    hint = "see whether it is busy, or give it longer with --timeout"


class Overloaded(ServerError):
    hint = "send less at a time with --concurrency, or give it longer with --timeout"


class BadAnswer(ServerError):
    hint = "see that the address is Triton's and that no proxy on the way rewrites it"


class ServerFault(ServerError):
    hint = "the server's log says why"


class AccessDenied(ServerError):
    retryable = False
    hint = "give them with --header 'Authorization: Bearer ...'"


class ModelNotFound(ServerError):
    retryable = False


class SignatureMismatch(ServerError):
    retryable = False


class RequestRefused(ServerError):
    retryable = False


class Unsupported(ServerError):
    retryable = False
    hint = "see that the address is Triton's"


def one_line(text: str) -> str:
    """The text without line breaks and without the addresses of code that the Python backend adds."""
    return " ".join(text.split("\n\nAt:")[0].split())


def model_message(text: str) -> str:
    """A model's own message, without the names of the models that passed it on."""
    return FRAME.sub("", text)
