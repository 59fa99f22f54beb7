"""Key files and trust lists: which keys sign, and which a device trusts.

Key files are OpenSSH's, so `ssh-keygen -t ed25519` makes them too: a private key between
"-----BEGIN OPENSSH PRIVATE KEY-----" and its end, without a passphrase (a cron job cannot type; the
file's permissions protect it, and a key that others can read is refused as ssh does), and a public
key on one line, "ssh-ed25519 BASE64 comment". A trust list changes which keys devices trust;
`verify` decides whether a device takes one.
"""

import base64
import binascii
import os
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cdcca_cli import files, streams
from cdcca_cli.downlink.signatures import PrivateKey, signers
from cdcca_cli.errors import (
    BadData,
    CannotWrite,
    MissingInput,
    SettingError,
    SignatureRefused,
    UsageError,
)
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.trust import MOST_KEYS, Trust, TrustList, read_trust_list

_ALGORITHM = b"ssh-ed25519"
_KEY_BYTES = 32
_MOST_FILE_BYTES = 1 << 16
_OTHERS = 0o077


def read_private_key(path: str | Path) -> PrivateKey:
    """A private key of `cdcca keygen` or `ssh-keygen -t ed25519`.

    Raises: MissingInput; BadData for a file that is none; UsageError for one of another algorithm,
    behind a passphrase, or that others can read.
    """
    data, mode = _read(path)
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
    if mode & _OTHERS:
        raise UsageError(
            f"{path}: other users can read this private key (mode {mode:04o}): chmod 600 {path}"
        )
    return PrivateKey(key)


def read_private_keys(paths: Sequence[Path], *, at_least: int = 1) -> list[PrivateKey]:
    """Several private keys, each once. Raises: as `read_private_key`, UsageError if too few."""
    if len(paths) < at_least:
        raise UsageError("no key to sign with: give a `key`, or set CDCCA_SIGN")
    found = [read_private_key(path) for path in paths]
    return list({key.public: key for key in found}.values())


def missing(trust: Trust | None, keys: Sequence[PrivateKey]) -> list[str]:
    """The note on an update that a device with this trust would refuse; none if it would not."""
    if trust is None:
        return []
    count = sum(key.public in trust.keys for key in keys)
    if count >= trust.threshold:
        return []
    return [
        f"the update has {count} of the {trust.threshold} signatures that the mirror asks for: "
        "devices with its trusted keys refuse it until cdcca sign adds the others"
    ]


def read_public_key(path: str | Path) -> str:
    """The key in a file of one line, "ssh-ed25519 BASE64 comment", as 64 hexadecimal digits.

    Raises: MissingInput, BadData, UsageError for a key of another algorithm.
    """
    data, _ = _read(path)
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


def _read(path: str | Path) -> tuple[bytes, int]:
    """A key file, and its permissions; 0 if it is another user's, as ssh sees it."""
    try:
        with open(path, "rb") as source:
            data = source.read(_MOST_FILE_BYTES + 1)
            status = os.fstat(source.fileno())
    except (OSError, ValueError) as error:
        raise MissingInput(files.reason(path, error)) from None
    if len(data) > _MOST_FILE_BYTES:
        raise BadData(f"{path}: too large for a key")
    return data, stat.S_IMODE(status.st_mode) if status.st_uid == os.getuid() else 0


def _is_public_line(data: bytes) -> bool:
    return data.lstrip().startswith(b"ssh-")


# ---------------------------------------------------------------- trust lists


def trust_of(path: Path) -> Trust | None:
    """What a device folder trusts (None if no key), or what a trust list says.

    Raises: MissingInput, BadData, NewerFormat.
    """
    if path.is_dir():
        return Device.open(path).trust
    with streams.binary_input(path) as source:
        return read_trust_list(source, where=str(path)).trust


def first_trust(paths: Sequence[Path], threshold: int | None) -> Trust | None:
    """What a new device trusts: the public keys in these files, or what one trust list says.

    A list, because a device that is made after a rotation has to start from the list that the
    others have. It needs signatures by a threshold of its own keys.

    Args: threshold: of public keys; None: 1.
    Returns: None without files.
    Raises: UsageError, SignatureRefused, and what reading the files does.
    """
    if not paths:
        if threshold is not None:
            raise SettingError("threshold", "does nothing without `trust`", threshold)
        return None
    if not any(map(_is_list, paths)):
        return _trust(1, [read_public_key(path) for path in paths], threshold or 1)
    if len(paths) > 1 or threshold is not None:
        reason = "a trust list names all keys and their threshold: give no other, no `threshold`"
        raise SettingError("trust", reason)
    with streams.binary_input(paths[0]) as source:
        found = read_trust_list(source, where=str(paths[0]))
    if words := _lacking(found, found.trust, "by its own keys"):
        raise SignatureRefused(f"{paths[0]}: {words}: add the missing ones with cdcca sign")
    return found.trust


def _is_list(path: Path) -> bool:
    """Whether it begins as a record does; a public key's file is text."""
    try:
        with path.open("rb") as source:
            return source.read(9)[8:] == b"{"
    except OSError:
        return False


def next_list(before: Trust | None, keys: Sequence[str], threshold: int) -> TrustList:
    """The list, still to be signed, that follows `before`; the first one after None.

    Raises: UsageError for a key that is named twice or a threshold that cannot be.
    """
    return TrustList(_trust(1 if before is None else before.version + 1, keys, threshold))


def _trust(version: int, keys: Sequence[str], threshold: int) -> Trust:
    if len(set(keys)) != len(keys):
        raise UsageError("one key is named twice: it would count once")
    if not 1 <= len(keys) <= MOST_KEYS:
        raise UsageError(f"{len(keys):,} keys to trust; expected 1 to {MOST_KEYS}")
    if threshold > len(keys):
        raise SettingError("threshold", f"there are only {len(keys)} keys", threshold)
    return Trust(version, threshold, tuple(sorted(keys)))


def summary(before: Trust | None, made: TrustList) -> str:
    """One line for people: the list, and which signatures it lacks."""
    line = (
        f"trust list {made.trust.version}: {made.trust.threshold} of {len(made.trust.keys)} keys "
        "must sign"
    )
    if before is None:
        line += "; a device without keys takes it unsigned only"
    lacking = _lacking(made, made.trust, "by its own keys")
    if before is not None and (words := _lacking(made, before, "by the keys trusted before")):
        lacking = f"{words}, {lacking}" if lacking else words
    return f"{line}; {lacking}: add the missing ones with cdcca sign" if lacking else line


def _lacking(made: TrustList, trust: Trust, whose: str) -> str:
    """Like "has 0 of 1 signature by its own keys"; empty if these keys have signed enough."""
    found = len(signers(made.signed_bytes(), made.signatures, trust.keys))
    if found >= trust.threshold:
        return ""
    plural = "s" if trust.threshold > 1 else ""
    return f"has {found} of {trust.threshold} signature{plural} {whose}"
