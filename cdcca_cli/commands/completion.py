"""`cdcca completion`: a script that completes command lines in a shell."""

from typing import Annotated

import typer

from cdcca_cli import options, streams

SHELLS = ("bash", "zsh", "fish")


def command(
    shell: Annotated[
        str,
        typer.Argument(
            help="Shell to print the script for",
            metavar=f"<{'|'.join(SHELLS)}>",
            autocompletion=options.completing(SHELLS),
            callback=options.one_of(SHELLS),
        ),
    ],
) -> None:
    """Print a script with which the shell completes commands, options and choices.

    bash: eval "$(cdcca completion bash)" in ~/.bashrc. zsh: the same in ~/.zshrc, after compinit.
    fish: cdcca completion fish > ~/.config/fish/completions/cdcca.fish

    Example: eval "$(cdcca completion bash)"
    """
    streams.set_quiet(True)  # no "done in ..." whenever a shell starts
    from typer.completion import get_completion_script

    streams.emit(
        get_completion_script(prog_name="cdcca", complete_var="_CDCCA_COMPLETE", shell=shell)
    )
