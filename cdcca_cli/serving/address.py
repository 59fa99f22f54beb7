"""Where a server is: `https://host/v1#model`."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from cdcca_cli import streams
from cdcca_cli.errors import UsageError


@dataclass(frozen=True)
class Address:
    """A server's URL, without a slash at its end, and the model it is asked for, or ""."""

    url: str
    model: str

    @classmethod
    def parse(cls, text: str, name: str = "teacher", *, needs_model: bool = True) -> "Address":
        """Args: name: the setting that is read. Raises: UsageError, which quotes no credentials."""
        try:
            parts = urlsplit(text)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"`{name}`: not an address ({error})") from None
        if "@" in parts.netloc:
            raise UsageError(
                f"`{name}`: an address with a user name or password: put the key into the "
                "environment variable that `api_key_env` names"
            )
        shown = streams.one_line(text[:200])
        if parts.scheme not in ("http", "https") or not host or parts.query:
            raise UsageError(f"`{name}` {shown}: expected an address like https://host/v1#model")
        if needs_model and not parts.fragment:
            raise UsageError(f"`{name}` {shown}: name its model behind a #, as in {shown}#model")
        place = f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"
        return cls(place.removesuffix("/chat/completions"), parts.fragment)

    @property
    def root(self) -> str:
        """The URL without the path of the OpenAI-compatible interface."""
        return self.url.removesuffix("/v1")

    @property
    def is_here(self) -> bool:
        """Whether this is an address of this machine alone."""
        host = urlsplit(self.url).hostname or ""
        return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){3}", host) is not None

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read what is sent."""
        return self.url.startswith("https://") or self.is_here

    def __str__(self) -> str:
        return f"{self.url}#{self.model}" if self.model else self.url


def is_address(name: str) -> bool:
    """Whether a name is an address of a server."""
    return re.match(r"https?://", name, re.IGNORECASE) is not None
