"""Keys and signatures, against RFC 8032's own vectors and against OpenSSH."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdcca_cli.downlink import keys, signatures
from cdcca_cli.errors import BadData, CannotWrite, CdccaError, MissingInput, UsageError
from cdcca_cli.formats.trust import Signature
from tests import slow_ed25519

# RFC 8032, section 7.1, tests 1 to 3: private key, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701"
        "cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d"
        "0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f7609"
        "84dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
needs_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed"
)


def key_of(seed: str) -> signatures.PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return signatures.PrivateKey(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)))


@pytest.mark.parametrize(("seed", "public", "message", "signature"), VECTORS)
def test_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    """The package and the slow arithmetic both give what the RFC says."""
    text = bytes.fromhex(message)
    assert key_of(seed).public == public
    assert key_of(seed).sign(text) == Signature(public, signature)
    assert slow_ed25519.public_key(bytes.fromhex(seed)).hex() == public
    assert slow_ed25519.signature(bytes.fromhex(seed), text).hex() == signature
    assert signatures.signers(text, [Signature(public, signature)], [public]) == (public,)


def test_signatures_of_two_hands_agree() -> None:
    key = signatures.generate()
    made = key.sign(b"some words")
    raw = bytes.fromhex(made.signature)
    assert slow_ed25519.is_valid(bytes.fromhex(key.public), b"some words", raw)
    assert not slow_ed25519.is_valid(bytes.fromhex(key.public), b"other words", raw)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 511), st.binary(max_size=40))
def test_one_changed_bit_and_the_signature_is_nobodys(bit: int, message: bytes) -> None:
    """In the signature or in the message; S + the group's order is refused as well (RFC 8032)."""
    _, public, _, _ = VECTORS[0]
    good = key_of(VECTORS[0][0]).sign(message)
    raw = bytearray(bytes.fromhex(good.signature))
    higher = int.from_bytes(raw[32:], "little") + slow_ed25519.ORDER
    raw[bit // 8] ^= 1 << bit % 8
    for false in (
        (message, raw.hex()),
        (message + b"\0", good.signature),
        (message, good.signature[:64] + higher.to_bytes(32, "little").hex()),
    ):
        assert signatures.signers(false[0], [Signature(public, false[1])], [public]) == ()


def test_each_key_counts_once() -> None:
    good = key_of(VECTORS[0][0]).sign(b"m")
    assert signatures.signers(b"m", [good, good], [good.key, good.key]) == (good.key,)
    assert signatures.signers(b"m", [good], []) == ()


class TestFiles:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        key = signatures.generate()
        public = keys.write_key_pair(tmp_path / "k", key, "someone")
        assert public == tmp_path / "k.pub"
        assert keys.read_private_key(tmp_path / "k").public == key.public
        assert keys.read_public_key(public) == key.public
        assert public.read_text().startswith("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI")
        assert public.read_text().endswith(" someone\n")

    def test_the_private_key_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            keys.write_key_pair(tmp_path / "k", signatures.generate())
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666, 0o602])
    def test_a_key_that_others_can_read_is_refused(self, tmp_path: Path, mode: int) -> None:
        """As ssh does (sshkey_perm_ok: mode & 077); the cure in the message works."""
        keys.write_key_pair(tmp_path / "k", signatures.generate())
        (tmp_path / "k").chmod(mode)
        with pytest.raises(UsageError, match=rf"mode {mode:04o}\): chmod 600 {tmp_path}/k$"):
            keys.read_private_key(tmp_path / "k")
        for sound in (0o600, 0o400, 0o700):
            (tmp_path / "k").chmod(sound)
            keys.read_private_key(tmp_path / "k")

    def test_another_users_key_is_not_judged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As with ssh: a key that root has given a group, say."""
        keys.write_key_pair(tmp_path / "k", signatures.generate())
        (tmp_path / "k").chmod(0o640)
        monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path / "k").st_uid + 1)
        keys.read_private_key(tmp_path / "k")

    @needs_ssh_keygen
    def test_ssh_refuses_the_same(self, tmp_path: Path) -> None:
        keys.write_key_pair(tmp_path / "k", signatures.generate())
        for mode, is_refused in ((0o600, False), (0o640, True), (0o601, True), (0o400, False)):
            (tmp_path / "k").chmod(mode)
            command = ["ssh-keygen", "-y", "-f", str(tmp_path / "k")]
            assert (subprocess.run(command, capture_output=True).returncode != 0) == is_refused

    @pytest.mark.parametrize("there", ["k", "k.pub"])
    def test_a_key_is_never_replaced(self, tmp_path: Path, there: str) -> None:
        (tmp_path / there).write_text("old")
        with pytest.raises(CannotWrite, match="never replaced"):
            keys.write_key_pair(tmp_path / "k", signatures.generate())
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(there, "old")]

    def test_a_link_to_nowhere_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "k").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CannotWrite, match="never replaced"):
            keys.write_key_pair(tmp_path / "k", signatures.generate())
        assert not (tmp_path / "elsewhere").exists()

    def test_no_half_of_a_pair_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, count = os.fsync, [0]

        def full(descriptor: int) -> None:
            count[0] += 1
            if count[0] == 3:  # file and folder of the private key, then the public one
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(CannotWrite, match="no space"):
            keys.write_key_pair(tmp_path / "k", signatures.generate())
        assert list(tmp_path.iterdir()) == []

    @needs_ssh_keygen
    def test_ssh_keygen_reads_ours(self, tmp_path: Path) -> None:
        keys.write_key_pair(tmp_path / "k", signatures.generate())
        command = ["ssh-keygen", "-y", "-f", str(tmp_path / "k")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split()[:2] == (tmp_path / "k.pub").read_text().split()[:2]

    @needs_ssh_keygen
    def test_we_read_ssh_keygens(self, tmp_path: Path) -> None:
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-C", "a b", "-f", str(tmp_path / "k")]
        subprocess.run([*make, "-N", ""], check=True)
        key = keys.read_private_key(tmp_path / "k")
        assert keys.read_public_key(tmp_path / "k.pub") == key.public
        assert signatures.signers(b"m", [key.sign(b"m")], [key.public]) == (key.public,)

    @needs_ssh_keygen
    @pytest.mark.parametrize(
        ("options", "words"),
        [(["-t", "ed25519", "-N", "secret"], "passphrase"), (["-t", "ecdsa", "-N", ""], "Ed25519")],
    )
    def test_keys_that_cannot_be_used(self, tmp_path: Path, options: list[str], words: str) -> None:
        command = ["ssh-keygen", "-q", *options, "-f", str(tmp_path / "k")]
        subprocess.run(command, check=True)
        with pytest.raises(UsageError, match=words):
            keys.read_private_key(tmp_path / "k")
        if "ecdsa" in options:
            with pytest.raises(UsageError, match="expected an ssh-ed25519 key, found ecdsa"):
                keys.read_public_key(tmp_path / "k.pub")

    def test_one_for_the_other(self, tmp_path: Path) -> None:
        keys.write_key_pair(tmp_path / "k", signatures.generate())
        with pytest.raises(UsageError, match="is a public key"):
            keys.read_private_key(tmp_path / "k.pub")
        with pytest.raises(UsageError, match="is a private key"):
            keys.read_public_key(tmp_path / "k")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0\xff",
            b"ssh-ed25519",
            b"ssh-ed25519 %%%",
            b"ssh-ed25519 AAAA",
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==",
            b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
            b"x" * (1 << 17),
        ],
    )
    def test_files_that_are_no_keys(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "k").write_bytes(content)
        (tmp_path / "k").chmod(0o600)
        for read in (keys.read_private_key, keys.read_public_key):
            with pytest.raises(CdccaError) as caught:
                read(tmp_path / "k")
            assert isinstance(caught.value, BadData | UsageError)
            assert "\n" not in str(caught.value)
        with pytest.raises(MissingInput):
            keys.read_public_key(tmp_path / "absent")
