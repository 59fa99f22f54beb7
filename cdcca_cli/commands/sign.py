"""`cdcca sign`: one more signature on an update, a trust list or a codebook."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.options import Force, Output, Quiet


def command(
    file: Annotated[
        str | None,
        typer.Argument(help="Update, trust list or codebook  [default: stdin]", show_default=False),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Private key to sign with (repeatable)", envvar="CDCCA_SIGN"),
    ] = None,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Add a signature, so that several people can sign the same file one after another.

    The signatures it has stay, and so does everything else; a key that has signed before replaces
    its own signature. The output may be FILE itself.

    Example: cdcca sign update.cdcca --key second.key -o update.cdcca
    """
    streams.set_quiet(quiet)
    from cdcca_cli.downlink import signatures
    from cdcca_cli.downlink.keys import read_private_keys

    keys = read_private_keys(key or [])
    with streams.binary_input(file) as source:
        found = signatures.read_signable(source, where=streams.input_name(file))
    signed = signatures.sign(found, keys)
    with streams.binary_output(output, "signed.cdcca", force=force) as out:
        signatures.write_signable(out, signed)
    streams.summary(f"signed by {', '.join(entry.key[:16] for entry in signed.signatures)}")
