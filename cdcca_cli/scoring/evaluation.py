"""`cdcca eval`: the files of an evaluation, read once each, to a `Report`."""

import os
from collections.abc import Mapping, Sequence

from cdcca_cli import remote, streams
from cdcca_cli.datasets import Reference, read_frames, read_references
from cdcca_cli.errors import BadData, SettingError, UsageError
from cdcca_cli.scoring import plots, tasks
from cdcca_cli.scoring.answers import Answers, read_answers
from cdcca_cli.scoring.continual import of_scores
from cdcca_cli.scoring.link import ledger
from cdcca_cli.scoring.report import Report
from cdcca_cli.scoring.scores import Scores, compare, in_common, score
from cdcca_cli.scoring.settings import EvaluationSettings


def evaluate(settings: EvaluationSettings) -> Report:
    """Score predictions, compare them, follow rounds, and account for the link.

    Raises: BadData (65), MissingInput (66), Unavailable (69), UsageError (2).
    """
    has_link = bool(settings.uplink or settings.downlink or settings.raw)
    if settings.link is not None and not has_link:
        raise SettingError("link", "needs `uplink`, `downlink` or `raw`, whose transfer it models")
    if settings.encoder_size is not None and settings.raw is None:
        raise SettingError("encoder_size", "needs `raw`, whose frames it resizes")
    if not settings.references and (
        settings.predictions or settings.round or settings.against is not None or settings.task
    ):
        raise SettingError("references", "expected a file to score the predictions against")
    if settings.round and settings.answered_only:
        raise SettingError(
            "answered_only",
            "would score each `round` over other questions: leave it out, and what a round did not "
            "answer counts as wrong",
        )
    if not settings.references and not has_link:
        raise UsageError("nothing to evaluate: give `references`, `uplink`, `downlink` or `raw`")
    if settings.plot is not None:
        plots.check(settings.plot)
    report = Report(tokenizer=settings.tokenizer)
    if settings.references:
        _score(report, settings)
        _print_notes(report)
    if has_link:
        frames = read_frames(settings.raw, images=settings.images) if settings.raw else None
        size = settings.encoder_size
        report.link = ledger.measure(
            settings.uplink, settings.downlink, frames, settings.link, encoder_size=size
        )
    return report


def _score(report: Report, settings: EvaluationSettings) -> None:
    """Fill in everything that is scored. Each file is read once: one of them may be a pipe."""
    references = read_references(settings.references)
    rounds = [named(text) for text in settings.round]
    stages = [_answers([path], settings) for _, path in rounds]
    is_last_round = bool(stages) and not settings.predictions
    report.answers = stages[-1] if is_last_round else _answers(settings.predictions, settings)
    references = _of_predicted_splits(references, report.answers.by_id)
    report.references, report.split = references, tasks.split_of(references)

    def scored(answers: Answers, *, intervals: bool = True) -> Scores:
        return score(
            references,
            answers.by_id,
            task=settings.task,
            answered_only=settings.answered_only,
            tokenizer=settings.tokenizer,
            seed=settings.seed,
            metrics=settings.metrics,
            intervals=intervals,
        )

    ours = report.answers
    if settings.against is None:
        report.scores = scored(ours)
    else:
        theirs = _answers([settings.against], settings)
        if settings.answered_only:
            ours, theirs = (Answers(by_id) for by_id in in_common(ours.by_id, theirs.by_id))
            if not ours.by_id:
                raise BadData(f"{settings.against}: no question that both sides answered")
        report.scores = scored(ours)
        report.other = scored(theirs, intervals=False)
        report.differences = compare(report.scores, report.other, seed=settings.seed)
    if stages:
        found = [scored(stage) for stage in stages]
        metrics = settings.metrics or tasks.TASKS[report.scores.task].headlines
        report.continual = [
            of_scores(found, [name for name, _ in rounds], metric, seed=settings.seed)
            for metric in metrics
            if any(stage.all(metric) for stage in found)
        ]


def _answers(paths: Sequence[str], settings: EvaluationSettings) -> Answers:
    return read_answers(paths or [None], keep_first=settings.duplicates == "first")


def named(text: str) -> tuple[str | None, str]:
    """A name, if it is given, and a file, from `[NAME=]FILE`."""
    name, sign, path = text.partition("=")
    is_named = sign and not (os.path.exists(text) or remote.is_address(text))
    return (name, path) if is_named else (None, text)


def _of_predicted_splits(
    references: Mapping[str, Reference], ids: Mapping[str, object]
) -> Mapping[str, Reference]:
    """Of a file with several splits (Karpathy's), the splits that the predictions belong to."""
    splits = {reference.split for reference in references.values()}
    predicted = {references[question_id].split for question_id in ids if question_id in references}
    if not predicted or predicted == splits:
        return references
    kept = {name: one for name, one in references.items() if one.split in predicted}
    names = ", ".join(sorted(name or "no split" for name in predicted))
    streams.message(
        f"references: scored on {len(kept):,} of {len(references):,}, those of {names}, which the "
        "predictions belong to"
    )
    return kept


def _print_notes(report: Report) -> None:
    if report.split.odd:
        streams.message(f"references: {report.split.odd}")
    answers = report.answers
    if answers.duplicates:
        streams.message(
            f"{len(answers.duplicates)} predictions are there more than once with the same answer, "
            f"such as '{answers.duplicates[0]}'"
        )
    if answers.conflicts:
        streams.message(
            f"{len(answers.conflicts)} predictions repeat a question with another answer, such as "
            f"'{answers.conflicts[0]}': the first one counts"
        )
    _print_notes_of(report.scores, "")
    if report.other.scores:
        _print_notes_of(report.other, "`against`: ")


def _print_notes_of(found: Scores, side: str) -> None:
    if found.unknown_ids:
        streams.message(
            f"{side}{len(found.unknown_ids)} predictions have ids that the references do not have, "
            f"such as '{found.unknown_ids[0]}'"
        )
    if found.num_not_choices or found.num_remapped:
        streams.message(
            f"{side}mc: {found.num_not_choices} answers are not among the choices; "
            f"{found.num_remapped} answers were replaced by the choice of highest score"
        )
    notes: dict[str, list[str]] = {}  # with the metrics that each one is about
    for metric, num_questions in found.left_out.items():
        note = f"left out, none of {num_questions} questions has a prediction"
        notes.setdefault(note, []).append(metric)
    for one in found.scores:
        if one.by == "all" and one.num_missing:
            note = (
                f"{one.num_missing} of {one.sample.n} questions have no prediction and count as "
                "wrong (`answered_only` leaves them out)"
            )
            notes.setdefault(note, []).append(one.metric)
    for note, metrics in notes.items():
        streams.message(f"{side}{', '.join(metrics)}: {note}")
