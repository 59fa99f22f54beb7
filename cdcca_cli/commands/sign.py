"""`cdcca sign`: one more signature on an update or a trust list."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    file: Annotated[
        str | None,
        typer.Argument(help="An update or a trust list.  [default: stdin]", show_default=False),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Sign with this private key (repeatable).", envvar="CDCCA_SIGN"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="Where it goes; FILE itself will do; - is stdout."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the usual file, where no -o is given.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Add a signature, so that several people can sign the same file one after another.

    Those that are there stay; a key that has signed already signs afresh. Everything but the
    signatures stays as it is.

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
    streams.message(f"signed by {', '.join(entry.key[:16] for entry in signed.signatures)}")
