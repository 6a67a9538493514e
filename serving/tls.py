"""TLS for gRPC, by tritonserver itself."""

from dataclasses import dataclass
from pathlib import Path

from serving.errors import ServingError


@dataclass(frozen=True)
class Tls:
    """PEM files: the server's certificate and key; with `ca`, callers need a certificate that it signed."""

    cert: Path
    key: Path
    ca: Path | None = None

    def flags(self) -> dict[str, object]:
        """Tritonserver's flags."""
        names = {"grpc-server-cert": self.cert, "grpc-server-key": self.key}
        if self.ca is None:
            return {"grpc-use-ssl": "true", **names}
        return {"grpc-use-ssl-mutual": "true", **names, "grpc-root-cert": self.ca}

    def check(self) -> None:
        """Raises ServingError where a file is no PEM: tritonserver would say no more than that gRPC did not start."""
        for path in filter(None, (self.cert, self.key, self.ca)):
            try:
                text = path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not text"
                raise ServingError(f"{path} cannot be read ({reason}): name a PEM file") from error
            if "-----BEGIN " not in text:
                raise ServingError(f"{path} is no PEM file: it has no -----BEGIN line")
