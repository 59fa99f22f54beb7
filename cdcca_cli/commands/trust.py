"""`cdcca trust`: a list of the keys that devices trust."""

from typing import Annotated

import typer

from cdcca_cli import streams
from cdcca_cli.options import Force, Output, Quiet, Sign, no_dash


def command(
    key: Annotated[
        list[str],
        typer.Option(help="Public key to trust (repeatable)", show_default=False, callback=no_dash),
    ],
    threshold: Annotated[
        int, typer.Option(min=1, help="Number of these keys that must sign an update")
    ] = 1,
    after: Annotated[
        str | None,
        typer.Option(
            help="Device folder or trust list that the new list follows", callback=no_dash
        ),
    ] = None,
    sign: Sign = None,
    output: Output = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Make a trust list: it is applied like an update, and changes which keys a device trusts.

    A threshold of the keys that devices trust now must sign it, and a threshold of its own keys;
    cdcca sign adds signatures that are not given here. Devices apply the lists in order and skip
    none, so keep them.

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
    streams.summary(keys.summary(before, made))
