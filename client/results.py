"""What a classification gives."""

from dataclasses import dataclass, field

from client.errors import ClassifierError


@dataclass(frozen=True, slots=True)
class Label:
    """One class of the answer. `probability` is in 0..1, to the six decimals that Triton prints."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a request went.

    Attributes:
        read_ms: reading the request's files, and decoding them where pixels are sent.
        wait_ms: pauses and attempts before the one that was answered.
        request_ms: the attempt that was answered, the network and the server's queue included.
        attempts: requests that it took.
        images: in the request.
        host: that answered.
    """

    read_ms: float = 0.0
    wait_ms: float = 0.0
    request_ms: float = 0.0
    attempts: int = 1
    images: int = 1
    host: str = ""


@dataclass(frozen=True, slots=True)
class Classification:
    """One image's classes, the most probable first.

    Attributes:
        path: as it was given, None for an image that came as bytes, array or Pillow image.
        version: of the model that answered.
        ms: from sending the request that carried this image to its answer.
    """

    path: str | None
    model: str
    version: str
    top: tuple[Label, ...]
    ms: float
    timing: Timing = field(default_factory=Timing, compare=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """One image that could not be classified, in its place among the results."""

    path: str | None
    error: ClassifierError
