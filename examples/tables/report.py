"""The tables as Markdown, from the files that the scripts beside this one leave.

    report.py methods|captions|ablation|tokens|uplink|rounds --out O --frames F --seeds 0 1 2

A figure is the mean over seeds of each seed's score (and, where it says so, over rounds, whose
counts are pooled). Its 95 % interval holds seeds, their selections of the stream and frames
together (`intervals`); two rows are compared seed by seed on the same frames. The seeds' own values
stand beside it where there are several.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from intervals import estimate, mean
from paper import PAPER

from cdcca_cli import streams
from cdcca_cli.datasets import Reference, load_image, read_frames, read_references
from cdcca_cli.scoring.answers import read_answers
from cdcca_cli.scoring.scores import MEAN, Score, Scores, score
from cdcca_cli.scoring.statistics import Difference, Sample

WHAT = ("methods", "captions", "ablation", "tokens", "uplink", "rounds")
METRICS = {"mc": "MC", "da": "DA", "cider": "CIDEr", "bleu4": "BLEU-4"}
SCORES = ("mc", "da", "cider")
Seeds = list[Sample]
"""A score of each seed, all over the same frames."""
SETS = {
    "heldout": "target frames that were never sent",
    "stream": "the stream, of which each seed adapted to a part",
    "source": "the source domain",
}


class Runs:
    """What lies in the output folder."""

    def __init__(self, out: Path, frames: Path, seeds: Sequence[int], reference: str) -> None:
        self.out, self.frames, self.seeds, self.reference = out, frames, list(seeds), reference
        self._references: dict[str, Mapping[str, Reference]] = {}
        self._scores: dict[Path, Scores] = {}

    def references(self, which: str) -> Mapping[str, Reference]:
        """The labels of a set of frames; empty if there is none."""
        if which not in self._references:
            found: Mapping[str, Reference] = {}
            if self.frames.is_dir():
                found = read_references(self.frames / which)
            elif which == "stream":
                found = read_references(self.frames)
            self._references[which] = found
        return self._references[which]

    def scores(self, path: Path, which: str) -> Scores:
        """Every score of a file of predictions."""
        if path not in self._scores:
            answers = read_answers([str(path)]).by_id
            task = "manifest" if self.frames.is_dir() else None
            self._scores[path] = score(self.references(which), answers, task=task, intervals=False)
        return self._scores[path]

    def path(self, seed: int, name: str, round_: int, which: str) -> Path | None:
        """Where the predictions of a set after a round are. name: `start` is the source model."""
        folder = self.out / f"seed-{seed}"
        if name == "start" or round_ == 0:
            path = folder / "start" / f"{which}.jsonl"
        else:
            path = folder / name / f"round-{round_}" / f"{which}.jsonl"
            if which == "stream" and not path.exists():  # a chain answers it before the next round
                path = folder / name / f"round-{round_ + 1}" / "before.jsonl"
        return path if path.exists() else None

    def score(
        self, seed: int, name: str, round_: int, which: str, metric: str, group: str
    ) -> Score | None:
        """One score, of everything or of a domain."""
        path = self.path(seed, name, round_, which)
        if path is None:
            return None
        key = (metric, {"all": "all", MEAN: "mean"}.get(group, "domain"), group)
        return next((one for one in self.scores(path, which).scores if one.key == key), None)

    def pooled(
        self,
        name: str,
        rounds: Iterable[int],
        which: str,
        metric: str,
        group: str = "all",
        seeds: Sequence[int] | None = None,
    ) -> Seeds | None:
        """Of each seed the mean over rounds, frame by frame; None if one is missing."""
        pooled = []
        for seed in self.seeds if seeds is None else seeds:
            found = [self.score(seed, name, r, which, metric, group) for r in rounds]
            samples = [one.sample for one in found if one is not None]
            if not samples or len(samples) < len(found):
                return None
            rows_UK = np.mean([sample.rows_UK for sample in samples], axis=0)
            pooled.append(replace(samples[0], rows_UK=rows_UK))
        return pooled or None

    def bytes_of(self, name: str, rounds: Iterable[int], file: str) -> float:
        """The mean size of a file over rounds and seeds."""
        sizes = [
            (self.out / f"seed-{seed}" / name / f"round-{round_}" / file).stat().st_size
            for seed in self.seeds
            for round_ in rounds
        ]
        return float(np.mean(sizes))

    def bytes_of_pixels(self) -> float | None:
        """What a seed's pictures take as a camera gives them: RGB, 3 bytes a pixel."""
        if not self.frames.is_dir():
            return None
        images, found = self.frames / "stream", []
        for seed in self.seeds:
            chosen = self.out / f"seed-{seed}" / "selection.jsonl"
            sizes = [load_image(frame).size for frame in read_frames(chosen, images=images)]
            found.append(sum(3 * width * height for width, height in sizes))
        return float(np.mean(found))

    def seconds_of(self, name: str, rounds: Iterable[int]) -> float:
        """The mean seconds of training in a round, without loading and asking the teacher."""
        seconds = []
        for seed in self.seeds:
            for round_ in rounds:
                log = self.out / f"seed-{seed}" / name / f"round-{round_}" / "steps.jsonl"
                lines = [json.loads(line) for line in log.read_text().splitlines()]
                seconds.append(max((line.get("seconds", 0.0) for line in lines), default=0.0))
        return float(np.mean(seconds))


def value(seeds: Seeds | None, places: int = 2) -> str:
    """A figure with its interval."""
    if seeds is None:
        return ""
    found = estimate(seeds)
    ends = "" if found.interval is None else " ({:.1f} to {:.1f})".format(*found.interval)
    return f"{found.value:.{places}f}{ends}"


def difference(ours: Seeds | None, theirs: Seeds | None) -> Difference | None:
    """Ours minus theirs, seed by seed over the same frames."""
    return None if ours is None or theirs is None else estimate(ours, theirs)


def told(found: Difference | None) -> str:
    """A difference with its interval, bold where that leaves zero out."""
    if found is None or found.interval is None:
        return ""
    low, high = found.interval.low, found.interval.high
    words = f"{found.value:+.2f} ({low:+.1f} to {high:+.1f})"
    return f"**{words}**" if low > 0 or high < 0 else words


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """One Markdown table on stdout."""
    lines = [f"### {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    streams.emit("\n".join([*lines, "", ""]))


def count(runs: Runs, which: str, metric: str) -> int:
    """How many questions a metric is over."""
    found = runs.score(runs.seeds[0], "start", 0, which, metric, "all")
    return 0 if found is None else found.sample.n


def is_scored(runs: Runs, name: str, which: str) -> bool:
    """Whether there are labels of a set, and answers to it after a chain's first round."""
    return any(runs.pooled(name, [1], which, metric) is not None for metric in SCORES)


# ---------------------------------------------------------------- Table 1


def methods(runs: Runs, names: Sequence[str], last: int) -> None:
    """Table 1: every round, the mean over rounds, the differences, what the source lost."""
    rounds = range(1, last + 1)
    for which in ("heldout", "stream"):
        if not count(runs, which, "da") and not count(runs, which, "mc"):
            continue
        header = ["", *(f"{METRICS[m]} r{r}" for r in rounds for m in ("mc", "da"))]
        header += ["mean MC", "mean DA"]
        rows = []
        for name in ("start", *names):
            cells = [
                value_only(runs.pooled(name, [r], which, m)) for r in rounds for m in ("mc", "da")
            ]
            means = [value(runs.pooled(name, rounds, which, m)) for m in ("mc", "da")]
            rows.append([label(name), *cells, *means])
        n = f"n = {count(runs, which, 'mc')} MC, {count(runs, which, 'da')} DA"
        table(f"Table 1, {SETS[which]} ({n}; seeds {of(runs)})", header, rows)
        gains(runs, names, rounds, which)
    cost(runs, names, rounds)
    forgotten(runs, names, last)
    table("The paper (VQAv2 to A-OKVQA)", *PAPER["methods"])


def gains(runs: Runs, names: Sequence[str], rounds: range, which: str) -> None:
    """Against the source model, and against the reference; of the last round too."""
    of_last = [("Differences after the last round", rounds[-1:])] if len(rounds) > 1 else []
    for title, these in (("Differences", rounds), *of_last):
        rows = []
        for name in names:
            cells = [label(name)]
            for other in ("start", runs.reference):
                for metric in ("mc", "da"):
                    own = runs.pooled(name, these, which, metric)
                    theirs = runs.pooled(other, these, which, metric)
                    cells.append("" if name == other else told(difference(own, theirs)))
            rows.append([*cells, by_seed(runs, name, these, which)])
        header = ["mean of rounds" if len(these) > 1 else f"round {these[0]}"]
        header += ["MC over source only", "DA over source only"]
        header += [f"MC against {runs.reference}", f"DA against {runs.reference}"]
        table(f"{title}, {SETS[which]}", [*header, "DA of each seed"], rows)


def by_seed(runs: Runs, name: str, rounds: range, which: str) -> str:
    """The mean DA (MC where there is none) of each seed."""
    metric = "da" if count(runs, which, "da") else "mc"
    samples = [runs.pooled(name, rounds, which, metric, seeds=[s]) for s in runs.seeds]
    return ", ".join(value_only(sample, 1) for sample in samples)


def cost(runs: Runs, names: Sequence[str], rounds: range) -> None:
    """What a round takes."""
    rows = [
        [
            label(name),
            f"{runs.bytes_of(name, rounds, 'uplink.tokens'):,.0f}",
            f"{runs.bytes_of(name, rounds, 'update.cdcca'):,.0f}",
            f"{runs.seconds_of(name, rounds):.1f}",
        ]
        for name in names
    ]
    table("A round", ["", "uplink bytes", "downlink bytes", "seconds of training"], rows)


def forgotten(runs: Runs, names: Sequence[str], last: int) -> None:
    """The source domain after the last round, against the start and against the reference."""
    n = max(count(runs, "source", metric) for metric in SCORES)
    if not n:
        return
    rows = []
    for name in names:
        cells = [label(name)]
        for other, metrics in (("start", SCORES), (runs.reference, SCORES[:2])):
            for metric in metrics:
                own = runs.pooled(name, [last], "source", metric)
                theirs = runs.pooled(other, [last], "source", metric)
                cells.append("" if name == other else told(difference(own, theirs)))
        rows.append(cells)
    header = ["after the last round", "MC", "DA", "CIDEr"]
    header += [f"MC against {runs.reference}", f"DA against {runs.reference}"]
    table(f"Change on {SETS['source']} (n = {n})", header, rows)


# ---------------------------------------------------------------- Table 2


def captions(runs: Runs, names: Sequence[str], last: int) -> None:
    """Table 2: BLEU-4 and CIDEr by domain after the last round.

    'all' is of all pictures together; the paper's is the mean of nocaps' three domains, which
    stands beside it where those are.
    """
    for which in ("heldout", "stream", "source"):
        if not count(runs, which, "cider"):
            continue
        domains = domains_of(runs, which)
        groups = ["all", *domains] if len(domains) > 1 else ["all"]
        if runs.score(runs.seeds[0], "start", 0, which, "cider", MEAN) is not None:
            groups.insert(1, MEAN)
        words = ["mean of domains" if group == MEAN else group for group in groups]
        header = ["", *(f"{g} {m}" for g in words for m in ("BLEU-4", "CIDEr"))]
        rows = []
        for name in ("start", *names):
            cells = []
            for group in groups:
                for metric in ("bleu4", "cider"):
                    sample = runs.pooled(name, [last], which, metric, group)
                    cells.append(value_only(sample))
            rows.append([label(name), *cells])
        n = count(runs, which, "cider")
        table(f"Table 2, {SETS[which]} ({n} pictures; seeds {of(runs)})", header, rows)
        rows = []
        for name in names:
            own = [runs.pooled(name, [last], which, "cider", group) for group in groups]
            start = [runs.pooled("start", [last], which, "cider", g) for g in groups]
            theirs = runs.pooled(runs.reference, [last], which, "cider")
            gained = [told(difference(a, b)) for a, b in zip(own, start, strict=True)]
            ahead = "" if name == runs.reference else told(difference(own[0], theirs))
            rows.append([label(name), *gained, ahead])
        header = ["CIDEr over source only", *words, f"all, against {runs.reference}"]
        table(f"Differences, {SETS[which]}", header, rows)
    table("The paper (COCO to nocaps), BLEU-4 / CIDEr", *PAPER["captions"])


def domains_of(runs: Runs, which: str) -> list[str]:
    """The domains of a set, by name."""
    path = runs.path(runs.seeds[0], "start", 0, which)
    if path is None:
        return []
    found = runs.scores(path, which).scores
    return sorted({s.group for s in found if s.by == "domain" and s.metric == "cider"})


# ---------------------------------------------------------------- Tables 3 and 4


def ablation(runs: Runs, row: str) -> None:
    """Table 3: each stage's own effect, in one round."""
    title = {
        "pl": "PL, the whole stream",
        f"pl-{row}": f"+ {row}",
        f"pl-{row}-uts1": "+ UTS-1 (questions)",
        f"pl-{row}-uts2": "+ UTS-2 (tokens)",
    }
    for which in ("heldout", "stream"):
        if not is_scored(runs, "ablation/pl", which):
            continue
        rows, before = [], "start"
        whole = runs.bytes_of("ablation/pl", [1], "uplink.tokens")
        for short in title:
            name = f"ablation/{short}"
            size = runs.bytes_of(name, [1], "uplink.tokens")
            cells = [title[short], f"{size:,.0f} ({size / whole:.0%})"]
            for metric in ("mc", "da"):
                own = runs.pooled(name, [1], which, metric)
                start = runs.pooled("start", [1], which, metric)
                previous = runs.pooled(before, [1], which, metric)
                cells += [told(difference(own, start)), told(difference(own, previous))]
            rows.append(cells)
            before = name
        header = ["", "uplink bytes", "MC over source only", "by this stage", "DA over source only"]
        n = f"n = {count(runs, which, 'mc')} MC, {count(runs, which, 'da')} DA"
        table(f"Table 3, {SETS[which]} ({n}; seeds {of(runs)})", [*header, "by this stage"], rows)
    table("The paper, over source only", *PAPER["ablation"])


def tokens(runs: Runs, rules: Sequence[str], row: str) -> None:
    """Table 4: which tokens, and how many."""
    shares = ("25%", "50%", "75%")
    for which in ("heldout", "stream"):
        if not is_scored(runs, f"tokens/{row}/{rules[0]}-25%", which):
            continue
        for metric in ("mc", "da"):
            rows = []
            for rule in rules:
                own = [runs.pooled(f"tokens/{row}/{rule}-{s}", [1], which, metric) for s in shares]
                rows.append([rule, *(value(sample) for sample in own)])
            for rule in rules:
                if rule == "variance":
                    continue
                ahead = [
                    told(
                        difference(
                            runs.pooled(f"tokens/{row}/variance-{s}", [1], which, metric),
                            runs.pooled(f"tokens/{row}/{rule}-{s}", [1], which, metric),
                        )
                    )
                    for s in shares
                ]
                rows.append([f"variance ahead of {rule}", *ahead])
            n = count(runs, which, metric)
            table(
                f"Table 4, {METRICS[metric]}, {SETS[which]} (n = {n}; seeds {of(runs)})",
                ["tokens kept", *shares],
                rows,
            )
    table("The paper, MC", *PAPER["tokens"])


def uplink(runs: Runs, pairs: Sequence[str], row: str) -> None:
    """Quality by the share of the whole stream's bytes that went up."""
    everything = f"uplink/{row}/100-100"
    whole = runs.bytes_of(everything, [1], "uplink.tokens")
    pixels = runs.bytes_of_pixels()
    for which in ("heldout", "stream"):
        if not is_scored(runs, everything, which):
            continue
        rows = []
        for pair in pairs:
            name = f"uplink/{row}/{pair.replace('/', '-')}"
            size = runs.bytes_of(name, [1], "uplink.tokens")
            cells = [f"{pair} %", f"{size:,.0f}", f"{size / whole:.1%}"]
            cells += ["" if pixels is None else f"{size / pixels:.1%}"]
            for metric in SCORES:
                own = runs.pooled(name, [1], which, metric)
                all_of_it = runs.pooled(everything, [1], which, metric)
                cells += [value_only(own)]
                cells += ["" if name == everything else told(difference(own, all_of_it))]
            rows.append(cells)
        header = ["questions/tokens", "uplink bytes", "of the whole", "of the stream's pixels"]
        header += [word for m in SCORES for word in (METRICS[m], "to the whole")]
        n = f"n = {count(runs, which, 'mc')} MC, {count(runs, which, 'da')} DA"
        table(f"Uplink, {SETS[which]} ({n}; seeds {of(runs)})", header, rows)


# ---------------------------------------------------------------- the figure


def rounds(runs: Runs, names: Sequence[str], last: int) -> None:
    """MC and DA after every round, with intervals, as OUT/rounds.png; the same as a table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    which = "heldout" if count(runs, "heldout", "mc") else "stream"
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows: dict[str, list[str]] = {name: [label(name)] for name in names}
    for axis, metric in zip(axes, ("mc", "da"), strict=True):
        for number, name in enumerate(names):
            pooled = [runs.pooled(name, [r], which, metric) for r in range(last + 1)]
            kept = [(r, estimate(seeds)) for r, seeds in enumerate(pooled) if seeds is not None]
            places = [r + 0.04 * (number - len(names) / 2) for r, _ in kept]
            values = [found.value for _, found in kept]
            halves = [e.interval.high - e.value if e.interval else 0.0 for _, e in kept]
            axis.errorbar(places, values, halves, marker="o", capsize=3, label=label(name))
            rows[name] += [f"{v:.2f}" for v in values]
        axis.set_xlabel("round")
        axis.set_ylabel(f"{METRICS[metric]}, %")
        axis.set_xticks(range(last + 1))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"{SETS[which]}; {len(runs.seeds)} seeds, 95 % intervals over seeds and frames")
    figure.savefig(runs.out / "rounds.png", dpi=130)
    header = ["", *(f"{METRICS[m]} r{r}" for m in ("mc", "da") for r in range(last + 1))]
    table(f"Round by round, {SETS[which]} (seeds {of(runs)})", header, rows.values())


# ---------------------------------------------------------------- words


def value_only(seeds: Seeds | None, places: int = 2) -> str:
    """A figure alone."""
    return "" if seeds is None else f"{mean(seeds):.{places}f}"


def label(name: str) -> str:
    """What a row is called."""
    return "source only" if name == "start" else name


def of(runs: Runs) -> str:
    """The seeds."""
    return ", ".join(map(str, runs.seeds))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--out", type=Path, required=True, help="what the scripts left")
    parser.add_argument("--frames", type=Path, required=True, help="the frames they were run on")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--methods", nargs="*", default=[], help="rows of Tables 1 and 2")
    parser.add_argument("--reference", default="pseudo-label", help="the row compared with")
    parser.add_argument("--row", default="kd", help="what Tables 3 and 4 were trained by")
    parser.add_argument("--rules", nargs="*", default=[])
    options = parser.parse_args()
    runs = Runs(options.out, options.frames, options.seeds, options.reference)
    if options.what == "methods":
        methods(runs, options.methods, options.rounds)
    elif options.what == "captions":
        captions(runs, options.methods, options.rounds)
    elif options.what == "ablation":
        ablation(runs, options.row)
    elif options.what == "tokens":
        tokens(runs, options.rules, options.row)
    elif options.what == "uplink":
        uplink(runs, options.rules, options.row)
    else:
        rounds(runs, options.methods, options.rounds)


if __name__ == "__main__":
    main()
