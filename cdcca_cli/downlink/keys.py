"""Key files and trust lists: which keys sign, and which a device trusts.

Key files are OpenSSH's, so `ssh-keygen -t ed25519` makes them too. A private key has no passphrase,
because cron jobs use it; as with ssh, a key that others can read is refused. A public key is one
line, "ssh-ed25519 BASE64 comment". `verify` decides whether a device takes a trust list.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cdcca_cli import files, remote, streams
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
_MOST_FILE_BYTES = 1 << 16
_OTHERS = 0o077


def read_private_key(path: str | Path) -> PrivateKey:
    """A private key of `cdcca keygen` or `ssh-keygen -t ed25519`.

    Raises: MissingInput, BadData; UsageError for another algorithm, a passphrase, or open
        permissions.
    """
    data, mode = _read(path)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    if data.lstrip().startswith(b"ssh-"):
        raise UsageError(f"{path}: is a public key: name the private one, without .pub")
    try:
        key = load_ssh_private_key(data, None)
    except (TypeError, UnsupportedAlgorithm):
        raise UsageError(
            f"{path}: cannot be read, most likely because of its passphrase: make a new key with "
            "cdcca keygen, or remove the passphrase of a copy with ssh-keygen -p"
        ) from None
    except ValueError:
        raise BadData(f"{path}: not a private key of cdcca keygen or ssh-keygen") from None
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
    """A note if an update with these signatures is refused by a device with this trust."""
    if trust is None:
        return []
    count = sum(key.public in trust.keys for key in keys)
    if count >= trust.threshold:
        return []
    return [
        f"the update has {count} of the {trust.threshold} signatures that the mirror requires: "
        "devices that trust the same keys refuse it until cdcca sign adds the others"
    ]


def read_public_key(path: str | Path) -> str:
    """The key in a public key file, 64 hexadecimal digits. Raises: as `read_private_key`."""
    path = remote.local(path)
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
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(b" ".join(words[:2]))
    except (ValueError, UnsupportedAlgorithm):
        raise BadData(f"{path}: a damaged ssh-ed25519 public key: copy it again") from None
    return key.public_bytes_raw().hex()  # type: ignore[union-attr]


def write_key_pair(path: Path, key: PrivateKey, comment: str = "cdcca") -> Path:
    """Write `path`, readable only by its owner, and `path`.pub; returns the latter.

    Raises: CannotWrite, also if one of them exists: a key is never replaced.
    """
    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if os.path.lexists(file):
            raise CannotWrite(f"{file}: exists, and keys are never replaced: choose another name")
    files.create_file(path, key.openssh_bytes(), 0o600)
    try:
        files.create_file(public, key.public_line(comment).encode(), 0o644)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return public


def _read(path: str | Path) -> tuple[bytes, int]:
    """A key file and its permissions. Those of another user's file are 0, as ssh ignores them."""
    try:
        with open(path, "rb") as source:
            data = source.read(_MOST_FILE_BYTES + 1)
            status = os.fstat(source.fileno())
    except (OSError, ValueError) as error:
        raise MissingInput(files.reason(path, error)) from None
    if len(data) > _MOST_FILE_BYTES:
        raise BadData(f"{path}: more than {_MOST_FILE_BYTES:,} bytes: too large for a key")
    return data, stat.S_IMODE(status.st_mode) if status.st_uid == os.getuid() else 0


# ---------------------------------------------------------------- trust lists


def trust_of(name: str | Path) -> Trust | None:
    """The trust of a device folder (None without keys) or of a trust list."""
    path = remote.local(name)
    if path.is_dir():
        return Device.open(path).trust
    with streams.binary_input(path) as source:
        return read_trust_list(source, where=str(path)).trust


def first_trust(names: Sequence[str | Path], threshold: int | None) -> Trust | None:
    """The trust of a new device: public keys, or one trust list signed by its own keys.

    Args: threshold: for public keys; None: 1.
    Returns: None without files.
    Raises: UsageError, SignatureRefused, MissingInput, BadData, NewerFormat.
    """
    paths = [remote.local(name) for name in names]
    if not paths:
        if threshold is not None:
            raise SettingError("threshold", "does nothing without `trust`", threshold)
        return None
    if not any(map(_is_list, paths)):
        return next_list(None, [read_public_key(path) for path in paths], threshold or 1).trust
    if len(paths) > 1 or threshold is not None:
        reason = (
            "a trust list has all keys and their threshold: give no other key and no `threshold`"
        )
        raise SettingError("trust", reason)
    with streams.binary_input(paths[0]) as source:
        found = read_trust_list(source, where=str(paths[0]))
    if words := _lacking(found, found.trust, "by its own keys"):
        raise SignatureRefused(f"{paths[0]}: {words}: add the missing ones with cdcca sign")
    return found.trust


def _is_list(path: Path) -> bool:
    """Whether the file begins like a record; a public key's file is text."""
    try:
        with path.open("rb") as source:
            return source.read(9)[8:] == b"{"
    except OSError:
        return False


def next_list(before: Trust | None, keys: Sequence[str], threshold: int) -> TrustList:
    """The unsigned list that follows `before` (None: the first list). Raises: UsageError."""
    if len(set(keys)) != len(keys):
        raise UsageError("a key is given twice, and would count once: give each key once")
    if not 1 <= len(keys) <= MOST_KEYS:
        raise UsageError(f"{len(keys):,} keys to trust; expected 1 to {MOST_KEYS}")
    if threshold > len(keys):
        raise SettingError(
            "threshold", f"expected at most {len(keys)}, the number of keys", threshold
        )
    version = 1 if before is None else before.version + 1
    return TrustList(Trust(version, threshold, tuple(sorted(keys))))


def summary(before: Trust | None, made: TrustList) -> str:
    """One line for people: the list and its missing signatures."""
    line = (
        f"trust list {made.trust.version}: {made.trust.threshold} of {len(made.trust.keys)} keys "
        "must sign"
    )
    if before is None:
        line += "; a device without keys takes it only unsigned"
    lacking = _lacking(made, made.trust, "by its own keys")
    if before is not None and (words := _lacking(made, before, "by the keys trusted before")):
        lacking = f"{words}, {lacking}" if lacking else words
    return f"{line}; {lacking}: add the missing ones with cdcca sign" if lacking else line


def _lacking(made: TrustList, trust: Trust, whose: str) -> str:
    """Like "has 0 of 1 signature by its own keys"; empty if enough of these keys have signed."""
    found = len(signers(made.signed_bytes(), made.signatures, trust.keys))
    if found >= trust.threshold:
        return ""
    plural = "s" if trust.threshold > 1 else ""
    return f"has {found} of {trust.threshold} signature{plural} {whose}"
