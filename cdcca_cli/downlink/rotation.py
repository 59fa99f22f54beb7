"""A change of the keys that devices trust: the list that follows another, and what it still lacks.

Whether a device takes a list is `receiver.rotate`'s to say.
"""

from collections.abc import Sequence
from pathlib import Path

from cdcca_cli import streams
from cdcca_cli.downlink import signing
from cdcca_cli.errors import SignatureRefused, UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.trust import MOST_KEYS, Trust, TrustList, read_trust_list


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

    A list, because a device that is made after a rotation has to go on from the list that the
    others have. It needs signatures by a threshold of its own keys.

    Args: threshold: of public keys; None: 1.
    Returns: None without files.
    Raises: UsageError, SignatureRefused, and what reading the files does.
    """
    if not paths:
        if threshold is not None:
            raise UsageError(f"--threshold {threshold}: there is no --trust with it")
        return None
    if not any(map(_is_list, paths)):
        return _trust(1, [signing.read_public_key(path) for path in paths], threshold or 1)
    if len(paths) > 1 or threshold is not None:
        raise UsageError("--trust: a trust list says all there is to say: no other, no --threshold")
    with streams.binary_input(paths[0]) as source:
        found = read_trust_list(source, where=str(paths[0]))
    own = signing.signers(found.signed_bytes(), found.signatures, found.trust.keys)
    if len(own) < found.trust.threshold:
        raise SignatureRefused(
            f"{paths[0]}: signed by {len(own)} of its own keys, {found.trust.threshold} must: "
            "add them with cdcca sign"
        )
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
        raise UsageError(f"--threshold {threshold}: there are only {len(keys)} keys")
    return Trust(version, threshold, tuple(sorted(keys)))


def summary(before: Trust | None, made: TrustList) -> str:
    """One line for people: the list, and whose signatures are still to come."""
    lacking = []
    for trust, words in ((before, "of the keys before"), (made.trust, "of its own keys")):
        if trust is not None:
            found = len(signing.signers(made.signed_bytes(), made.signatures, trust.keys))
            if found < trust.threshold:
                lacking.append(f"signed by {found} {words}, {trust.threshold} must")
    line = (
        f"trust list {made.trust.version}: {made.trust.threshold} of {len(made.trust.keys)} keys "
        "must sign"
    )
    if before is None:
        line += "; a device without keys takes it with --unsigned"
    return f"{line}; {', '.join(lacking)}: add them with cdcca sign" if lacking else line
