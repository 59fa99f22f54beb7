"""Ed25519 keys and signatures (RFC 8032): who vouches for an update or a trust list.

Key files are OpenSSH's, so `ssh-keygen -t ed25519` makes them too: a private key between
"-----BEGIN OPENSSH PRIVATE KEY-----" and its end, without a passphrase (the file's permissions
protect it, or a disk's encryption: a cron job cannot type), and a public key on one line,
"ssh-ed25519 BASE64 comment". A signature is over the message itself, without ssh's framing.

Nothing here decides whose signatures are enough (`receiver`), and it holds no keys of its own. The
`cryptography` package is imported where a key is used: a device that trusts no key never loads it.
"""

import base64
import binascii
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self, TypeVar

from cdcca_cli import files
from cdcca_cli.errors import BadData, CannotWrite, MissingInput, UsageError
from cdcca_cli.formats import trust, update
from cdcca_cli.formats.trust import (
    Signature,
    Trust,
    TrustList,
    read_strict_record,
    write_trust_list,
)
from cdcca_cli.formats.update import Update, write_update

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class Signable(Protocol):
    """An update or a trust list."""

    @property
    def signatures(self) -> tuple[Signature, ...]: ...

    def signed_bytes(self) -> bytes: ...

    def with_signatures(self, signatures: tuple[Signature, ...]) -> Self: ...


Signed = TypeVar("Signed", bound=Signable)

_ALGORITHM = b"ssh-ed25519"
_KEY_BYTES = 32
_MOST_FILE_BYTES = 1 << 16


class PrivateKey:
    """What signs. Its public half is `public`, 64 hexadecimal digits."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> Signature:
        """The signature of a message; the same message gives the same one."""
        return Signature(self.public, self._key.sign(message).hex())

    def openssh_bytes(self) -> bytes:
        """The private key's file."""
        from cryptography.hazmat.primitives import serialization

        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )


def generate() -> PrivateKey:
    """A new key, from the system's randomness."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return PrivateKey(Ed25519PrivateKey.generate())


def sign(signed: Signed, keys: Sequence[PrivateKey]) -> Signed:
    """The same with these keys' signatures added; a key that has signed before signs afresh.

    An update of format version 1 becomes one of version 2, which alone has room for signatures.
    """
    message = signed.signed_bytes()
    signatures = {signature.key: signature for signature in signed.signatures}
    signatures |= {key.public: key.sign(message) for key in keys}
    return signed.with_signatures(tuple(signatures[key] for key in sorted(signatures)))


def signers(
    message: bytes, signatures: Iterable[Signature], trusted: Sequence[str]
) -> tuple[str, ...]:
    """The trusted keys that have signed this message, ascending; each counts once.

    Signatures of other keys are not looked at, and one that is false counts for nothing.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = set()
    for signature in signatures:
        if signature.key in trusted:
            with suppress(InvalidSignature, ValueError):
                key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
                key.verify(bytes.fromhex(signature.signature), message)
                found.add(signature.key)
    return tuple(sorted(found))


def read_signable(stream: BinaryIO, *, where: str) -> Update | TrustList:
    """An update or a trust list, whichever it is. BadData, NewerFormat."""
    record = read_strict_record(stream, update.KINDS | trust.KINDS, where)
    if record.header["kind"] == "trust":
        return trust.trust_list_of(record, where)
    return update.envelope_of(record, where).open(where)


def write_signable(out: files.Writable, signed: Update | TrustList) -> int:
    """Write it again; returns its bytes."""
    if isinstance(signed, TrustList):
        return write_trust_list(out, signed)
    return write_update(out, signed)


# ---------------------------------------------------------------- key files


def read_private_key(path: str | Path) -> PrivateKey:
    """A private key of `cdcca keygen` or `ssh-keygen -t ed25519`.

    Raises: MissingInput; BadData for a file that is none; UsageError for one of another algorithm
    or behind a passphrase.
    """
    data = _read(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    if _is_public_line(data):
        raise UsageError(f"{path}: is a public key: name the private one, without .pub")
    try:
        key = load_ssh_private_key(data, None)
    except (TypeError, UnsupportedAlgorithm):
        raise UsageError(
            f"{path}: cannot be read, most likely for its passphrase: make a key of its own with "
            "cdcca keygen, or take the passphrase off a copy with ssh-keygen -p"
        ) from None
    except ValueError:
        raise BadData(
            f"{path}: not a private key as cdcca keygen or ssh-keygen writes it"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path}: not an Ed25519 key: make one with cdcca keygen")
    return PrivateKey(key)


def read_private_keys(paths: Sequence[Path], *, at_least: int = 1) -> list[PrivateKey]:
    """Several private keys, each once. Raises: as `read_private_key`, UsageError if too few."""
    if len(paths) < at_least:
        raise UsageError("no key to sign with: give --key, or CDCCA_SIGN")
    found = [read_private_key(path) for path in paths]
    return list({key.public: key for key in found}.values())


def missing(trust: Trust | None, keys: Sequence[PrivateKey]) -> list[str]:
    """What to say where a device with this trust would refuse what these keys have signed."""
    if trust is None:
        return []
    count = sum(key.public in trust.keys for key in keys)
    if count >= trust.threshold:
        return []
    return [
        f"signed by {count} of the {trust.threshold} trusted keys that the mirror asks for: "
        "devices like it refuse the update until cdcca sign has added the others"
    ]


def read_public_key(path: str | Path) -> str:
    """The key in a file of one line, "ssh-ed25519 BASE64 comment", as 64 hexadecimal digits.

    Raises: MissingInput, BadData, UsageError for a key of another algorithm.
    """
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path}: is a private key: name the public one, {path}.pub")
    lines = [line for line in data.splitlines() if line.strip() and not line.startswith(b"#")]
    words = lines[0].split() if lines else []
    if len(lines) != 1 or len(words) < 2:
        raise BadData(f"{path}: expected one public key on one line, ssh-ed25519 ...")
    if words[0] != _ALGORITHM:
        kind = words[0][:40].decode("ascii", "backslashreplace")
        raise UsageError(f"{path}: expected an ssh-ed25519 key, found {kind}: make one with keygen")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error:
        blob = b""
    head = struct.pack(">I", len(_ALGORITHM)) + _ALGORITHM + struct.pack(">I", _KEY_BYTES)
    if not blob.startswith(head) or len(blob) != len(head) + _KEY_BYTES:
        raise BadData(f"{path}: not a sound ssh-ed25519 public key: it is damaged, copy it again")
    return blob[len(head) :].hex()


def public_line(key: str, comment: str) -> str:
    """A public key's file: `read_public_key` reads it, and so do OpenSSH's tools."""
    parts = (_ALGORITHM, bytes.fromhex(key))
    blob = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    return f"{_ALGORITHM.decode()} {base64.b64encode(blob).decode()} {comment}".rstrip() + "\n"


def write_key_pair(path: Path, key: PrivateKey, comment: str = "cdcca") -> Path:
    """Write `path`, readable for its owner alone, and `path`.pub; returns the latter's path.

    Raises: CannotWrite, also if one of them exists: a key is never replaced.
    """
    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if os.path.lexists(file):
            raise CannotWrite(f"{file}: exists, and keys are never replaced: name another")
    files.create_file(path, key.openssh_bytes(), 0o600)
    try:
        files.create_file(public, public_line(key.public, comment).encode(), 0o644)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return public


def _read(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as source:
            data = source.read(_MOST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MissingInput(f"{path}: {(reason or 'cannot be opened').lower()}") from None
    if len(data) > _MOST_FILE_BYTES:
        raise BadData(f"{path}: too large for a key")
    return data


def _is_public_line(data: bytes) -> bool:
    return data.lstrip().startswith(b"ssh-")
