"""`cdcca label`: token shards to the large model's answers, on the cloud."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from cdcca_cli import remote, streams
from cdcca_cli.config import Runtime
from cdcca_cli.options import Output, Quiet, Shards, Strict, Student, Teacher
from cdcca_cli.teachers.settings import LabelSettings, ServerSettings


def command(
    *,
    shards: Shards = None,
    teacher: Teacher = None,
    output: Output = None,
    student: Student = None,
    write_requests: Annotated[
        str | None,
        typer.Option(
            help="Write the requests for missing labels to this file instead, as OpenAI batch "
            "APIs and vllm run-batch read them; --teacher is then the model's name"
        ),
    ] = None,
    how: LabelSettings,
    server: ServerSettings,
    on: Runtime,
    strict: Strict = False,
    quiet: Quiet = False,
) -> None:
    """Ask the large model the questions of the shards, and keep its answers as labels.

    A file that is there already is continued: only labels that it lacks are asked for, so a run
    that was stopped goes on. An address (s3://...) is written anew, when all labels are there.
    Files of labels can be joined by cat, and one for each file of shards can be made on another
    machine. `cdcca distill --teacher` asks by itself.

    Example: cdcca label uplink.tokens --teacher t/ -o uplink.labels
    \f

    A teacher at an address, or a file of its answers, looks at the pictures that were sent (sample
    --payload frame). Its key is taken from an environment variable. The mirror (--student) is read
    only for its codebook, if tokens are coded with one.
    """
    streams.set_quiet(quiet)
    from cdcca_cli import config, distributed
    from cdcca_cli.errors import BadData, SettingError, UsageError
    from cdcca_cli.formats.label_stream import Writer, writing
    from cdcca_cli.formats.shard_stream import read_all
    from cdcca_cli.skipped import Skipped
    from cdcca_cli.teachers import served
    from cdcca_cli.teachers.labelling import Lacks, add_missing, open_labels, refusing
    from cdcca_cli.teachers.opening import open_teacher
    from cdcca_cli.text import counted

    num_processes = distributed.announced()
    if num_processes > 1:
        raise UsageError(
            f"{num_processes} processes cannot write one file of labels: give each its own shards "
            "and file, or let distill label"
        )
    skipped = Skipped(strict=strict)
    with ExitStack() as opened:
        sources = [
            (streams.input_name(path), opened.enter_context(streams.binary_input(path)))
            for path in ([*shards] if shards else [None])
        ]
        usual = "uplink.labels" if streams.is_terminal("stdout") else "-"
        named = usual if output is None else remote.path_of(output)
        is_stream = named == "-" or remote.is_address(named)
        if write_requests is not None:
            requests = opened.enter_context(streams.text_output(write_requests))
            kept = [open_labels([Path(named)])] if not is_stream and Path(named).exists() else []
            model = (teacher or config.named_teacher(None) or "").rpartition("#")[2]
            if not model:
                raise SettingError("teacher", "expected the name of the model that is asked")
            asked_for = served.write_requests(
                read_all(sources, skipped), Lacks(*kept), requests, model, server
            )
            streams.summary(f"{asked_for}{skipped}")
            return
        if is_stream:  # opened before the work, so that it is refused before
            stream = opened.enter_context(streams.binary_output(named, "uplink.labels"))
            write = Writer(stream, "the labels", how.label_bits, None)
        on.set_threads()
        asked = open_teacher(
            config.teacher(teacher),
            how,
            server,
            on,
            lambda digest: config.device(student, "student").codebook_of(digest),
            skipped,
        )
        if not is_stream:
            bits, whose = how.label_bits, asked.source.name
            file = writing(Path(named), bits, teacher=whose, refused=refusing(skipped))
            write = opened.enter_context(file)
        lacks = Lacks() if write.labels is None else Lacks(write.labels)
        if shards and all(path != "-" and not remote.is_address(path) for path in shards):
            again = [(path, opened.enter_context(streams.binary_input(path))) for path in shards]
            asked.announce(read_all(again, Skipped(quiet=True)), lacks)
        count = add_missing(asked, read_all(sources, skipped), write, lacks, skipped)
        asked.close()
    if not count and skipped.count and not (write.labels and len(write.labels)):
        raise BadData(f"no question has a label{skipped}")
    streams.summary(f"{counted(count, 'label')} written{skipped}")
