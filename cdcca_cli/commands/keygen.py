"""`cdcca keygen`: a key to sign updates with."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    key: Annotated[
        Path, typer.Argument(help="The private key's file; KEY.pub gets the public one.")
    ],
    comment: Annotated[str, typer.Option(help="Whose key it is, for people.")] = "cdcca",
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Make an Ed25519 key pair: KEY stays in the cloud, KEY.pub goes to the devices.

    The private key is readable for its owner only and has no passphrase. An existing file is never
    replaced. Keys of ssh-keygen -t ed25519 do as well.

    Example: cdcca keygen fleet.key && cdcca init device/ --trust fleet.key.pub
    """
    streams.set_quiet(quiet)
    from cdcca_cli.downlink import keys, signatures

    made = signatures.generate()
    public = keys.write_key_pair(key, made, comment)
    streams.message(f"{key}, {public}: key {made.public}")
    if json:
        streams.emit_json({"private": str(key), "public": str(public), "key": made.public})
