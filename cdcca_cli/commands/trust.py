"""`cdcca trust`: a list of the keys that devices are to trust from now on."""

from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import streams


def command(
    key: Annotated[
        list[Path], typer.Option(help="A public key to trust (repeatable).", show_default=False)
    ],
    threshold: Annotated[
        int, typer.Option(min=1, help="How many of them must sign an update.")
    ] = 1,
    after: Annotated[
        Path | None,
        typer.Option(help="What it follows: a device folder, or the list before this one."),
    ] = None,
    sign: Annotated[
        list[Path] | None,
        typer.Option(help="Sign with this private key (repeatable).", envvar="CDCCA_SIGN"),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The list's file; - is stdout.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the usual file, where no -o is given.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr.")] = False,
) -> None:
    """Make a trust list: it goes down like an update, and changes which keys a device trusts.

    It has to be signed by a threshold of the keys that devices trust now and by a threshold of its
    own; cdcca sign adds the signatures that are not given here. Devices take the lists one after
    another and skip none: keep them.

    Example: cdcca trust --after mirror/ --key new.key.pub --sign old.key --sign new.key -o 2.trust
    """
    streams.set_quiet(quiet)
    from cdcca_cli.downlink import keys, signatures
    from cdcca_cli.formats.trust import write_trust_list

    before = None if after is None else keys.trust_of(after)
    made = keys.next_list(before, [keys.read_public_key(path) for path in key], threshold)
    made = signatures.sign(made, keys.read_private_keys(sign or [], at_least=0))
    with streams.binary_output(output, "trust.cdcca", force=force) as out:
        write_trust_list(out, made)
    streams.message(keys.summary(before, made))
