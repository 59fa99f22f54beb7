"""Ed25519 signatures (RFC 8032) on updates, trust lists and codebooks, without ssh's framing.

`verify` decides which signatures are required. `cryptography` is imported only when a key is used:
a device that trusts no key never loads it.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from cdcca_cli.files import Writable
from cdcca_cli.formats import codebook, trust, update
from cdcca_cli.formats.codebook import Codebook, write_codebook
from cdcca_cli.formats.trust import Signature, TrustList, read_strict_record, write_trust_list
from cdcca_cli.formats.update import Update, write_update

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


Signable = Update | TrustList | Codebook
Signed = TypeVar("Signed", Update, TrustList, Codebook, Signable)


class PrivateKey:
    """A private key; `public` is its public half, 64 hexadecimal digits."""

    def __init__(self, key: "Ed25519PrivateKey") -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> Signature:
        return Signature(self.public, self._key.sign(message).hex())

    def openssh_bytes(self) -> bytes:
        from cryptography.hazmat.primitives import serialization

        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )

    def public_line(self, comment: str) -> str:
        """The content of the public key's file, for cdcca and OpenSSH's tools."""
        from cryptography.hazmat.primitives import serialization

        line = self._key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        return f"{line.decode()} {comment}".rstrip() + "\n"


def generate() -> PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return PrivateKey(Ed25519PrivateKey.generate())


def sign(signed: Signed, keys: Sequence[PrivateKey]) -> Signed:
    """A copy with these keys' signatures added; a key's earlier signature is replaced.

    An update of format version 1 becomes version 2, because version 1 has no signatures.
    """
    message = signed.signed_bytes()
    signatures = {signature.key: signature for signature in signed.signatures}
    signatures |= {key.public: key.sign(message) for key in keys}
    return signed.with_signatures(tuple(signatures[key] for key in sorted(signatures)))


def signers(
    message: bytes, signatures: Iterable[Signature], trusted: Sequence[str]
) -> tuple[str, ...]:
    """The trusted keys that have signed this message, ascending; false signatures are ignored."""
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


def read_signable(stream: BinaryIO, *, where: str) -> Signable:
    """Read an update, a trust list or a codebook. Raises: BadData, NewerFormat."""
    record = read_strict_record(stream, update.KINDS | trust.KINDS | codebook.KINDS, where)
    if record.header["kind"] == "trust":
        return trust.trust_list_of(record, where)
    if record.header["kind"] == "codebook":
        return codebook.codebook_of(record, where)
    return update.envelope_of(record, where).open(where)


def write_signable(out: Writable, signed: Signable) -> int:
    """Write an update, a trust list or a codebook; returns its bytes."""
    if isinstance(signed, TrustList):
        return write_trust_list(out, signed)
    if isinstance(signed, Codebook):
        return write_codebook(out, signed)
    return write_update(out, signed)
