"""How long it takes to score the captions of COCO val2017, against pycocoevalcap with Java.

    python examples/benchmarks/captions.py FOLDER [--runs 5]

FOLDER holds captions_val2017.json (25,014 human captions of 5,000 images). Each image's prediction
is the first caption of the next image. Both sides start a process, read the file, tokenise, and
score BLEU-1..4, CIDEr-D and ROUGE-L; they alternate, so that a busy machine slows both, and the
ratio is the median of the pairs. Prints one JSON object: seconds (the fastest run of each side),
the ratio and the highest of the pairs, the most bytes that cdcca's process held, and the largest
difference between the scores of the two. Without Java it ends in an error.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def read(folder: Path) -> tuple[list[str], list[list[str]]]:
    """Captions and references: (U,), U lists."""
    human: dict[int, list[str]] = {}
    for annotation in json.loads((folder / "captions_val2017.json").read_text())["annotations"]:
        human.setdefault(annotation["image_id"], []).append(annotation["caption"])
    references = list(human.values())
    return [one[0] for one in references[1:] + references[:1]], references


def score_with_cdcca(folder: Path) -> dict[str, float]:
    from cdcca_cli.scoring.captions import scorers

    corpus = scorers.tokenised(*read(folder))
    totals = scorers.bleu_statistics(corpus).sum(0, keepdims=True)
    scores = {f"bleu{order}": float(scorers.bleu(totals, order)[0]) for order in (1, 2, 3, 4)}
    scores["cider"] = float(scorers.cider(corpus).mean())
    scores["rouge_l"] = float(scorers.rouge_l(corpus).mean())
    return scores


def score_with_pycocoevalcap(folder: Path) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    made, references = read(folder)
    human = PTBTokenizer().tokenize(
        {image: [{"caption": one} for one in of] for image, of in enumerate(references)}
    )
    ours = PTBTokenizer().tokenize({image: [{"caption": one}] for image, one in enumerate(made)})
    bleu, _ = Bleu(4).compute_score(human, ours, verbose=0)
    scores = {f"bleu{order}": float(bleu[order - 1]) for order in (1, 2, 3, 4)}
    scores["cider"] = float(Cider().compute_score(human, ours)[0])
    scores["rouge_l"] = float(Rouge().compute_score(human, ours)[0])
    return scores


SIDES = {"cdcca": score_with_cdcca, "pycocoevalcap": score_with_pycocoevalcap}


def timed(side: str, folder: Path) -> tuple[float, int, dict[str, float]]:
    """Seconds that a side takes, the most bytes that its process held, and its scores."""
    with tempfile.TemporaryFile() as out:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, __file__, str(folder), "--side", side],
            stdout=out,
            stderr=subprocess.DEVNULL,
            # The JVM of pycocoevalcap takes its encoding from the locale.
            env=os.environ | {"LC_ALL": "C.UTF-8"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            raise SystemExit(f"{side} failed")
        out.seek(0)
        return seconds, usage.ru_maxrss * 1024, json.loads(out.read())


def measure(folder: Path, runs: int) -> dict[str, Any]:
    pairs = [(timed("cdcca", folder), timed("pycocoevalcap", folder)) for _ in range(runs)]
    ratios = [ours[0] / theirs[0] for ours, theirs in pairs]
    difference = max(
        abs(ours[2][metric] - theirs[2][metric]) for ours, theirs in pairs for metric in ours[2]
    )
    return {
        "cdcca_seconds": round(min(ours[0] for ours, _ in pairs), 3),
        "pycocoevalcap_seconds": round(min(theirs[0] for _, theirs in pairs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "highest_ratio": round(max(ratios), 3),
        "cdcca_peak_bytes": max(ours[1] for ours, _ in pairs),
        "largest_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        result: dict[str, Any] = dict(SIDES[options.side](options.folder))
    elif shutil.which("java") is None:
        raise SystemExit("pycocoevalcap's tokenizer needs Java, and there is none here")
    else:
        result = measure(options.folder, options.runs)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
