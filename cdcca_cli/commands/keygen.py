"""`cdcca keygen`: a key to sign updates with."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.options import Json, Quiet


def command(
    key: Annotated[
        Path, typer.Argument(help="File for the private key; KEY.pub gets the public one")
    ],
    comment: Annotated[str, typer.Option(help="Comment in both files, such as a name")] = "cdcca",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Make an Ed25519 key pair: KEY stays in the cloud, KEY.pub goes to the devices.

    Only its owner can read the private key, which has no passphrase. An existing file is never
    replaced. Keys of ssh-keygen -t ed25519 can be used too.

    Example: cdcca keygen fleet.key && cdcca init device/ --trust fleet.key.pub
    """
    streams.set_quiet(quiet)
    from cdcca_cli.downlink import keys, signatures

    made = signatures.generate()
    public = keys.write_key_pair(key, made, comment)
    if json:
        streams.emit_json({"private": str(key), "public": str(public), "key": made.public})
    streams.summary(f"{key}, {public}: key {made.public}")
