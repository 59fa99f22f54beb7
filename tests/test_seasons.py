"""The rounds through day, night and fog run; what the report says is in the files they leave."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cdcca_cli.datasets import read_references
from cdcca_cli.scoring.answers import read_answers
from cdcca_cli.scoring.scores import score

SEASONS = Path(__file__).parent.parent / "examples" / "seasons"
VARIANTS = ("plain", "anchors and replay")
TWICE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
import report, seasons

def rounds():
    return {path: path.stat().st_mtime_ns for path in Path(sys.argv[-1]).rglob("round.json")}

seasons.main()
made = rounds()
assert made
seasons.main()
assert rounds() == made, "a complete chain is not run again"
sys.argv[1:] = sys.argv[-1:]
report.main()
"""


def test_what_is_reported_is_in_the_files(tmp_path: Path) -> None:
    sizes = [
        "--rounds",
        "2",
        "--frames",
        "4",
        "--probe",
        "3",
        "--anchors",
        "2",
        "--epochs",
        "1",
        "-o",
    ]
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(SEASONS), *VARIANTS, *sizes, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["rounds"]) == list(VARIANTS)
    for variant, rounds in results["rounds"].items():
        assert [one["season"] for one in rounds] == ["day", "fog"]
        for number, one in enumerate(rounds, 1):
            folder = tmp_path / "seed-0" / variant / f"round-{number}"
            assert one["downlink_bytes"] == [(folder / "update.cdcca").stat().st_size]
            assert one["uplink_bytes"] == [(folder / "uplink.tokens").stat().st_size]
            assert one["source_drift"][0] > 0
            for probe, values in one["scores"].items():
                references = read_references(str(tmp_path / "probes" / probe / "questions.jsonl"))
                answers = read_answers([str(folder / f"{probe}.jsonl")]).by_id
                scores = score(references, answers, task="manifest", intervals=False)
                for metric, (value, low, high) in values.items():
                    assert abs(value - scores.all(metric).value) < 0.01
                    assert low <= value <= high
    assert "| fog, round 2 (fog) |" in done.stdout
    with Image.open(tmp_path / "seasons.png") as figure:
        assert figure.size == (800, 800)


def test_the_weather_is_what_it_is_called(tmp_path: Path) -> None:
    """Night is dark, fog has little contrast; the scenes and their questions stay as they are."""
    draw = (
        "import sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv[1])\n"
        "from weather import draw_frames\n"
        "for season in ('day', 'night', 'fog'):\n"
        "    draw_frames(Path(sys.argv[2]) / season / 'x', season, 6, 7)\n"
    )
    subprocess.run([sys.executable, "-c", draw, str(SEASONS), str(tmp_path)], check=True)
    seen = {
        season: np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("x/*.jpg"))])
        for season in ("day", "night", "fog")
        for folder in [tmp_path / season]
    }
    lights = {season: pictures.mean() for season, pictures in seen.items()}
    contrasts = {season: pictures.std() for season, pictures in seen.items()}
    assert lights["night"] < 0.7 * lights["day"] < lights["fog"]
    assert contrasts["fog"] < 0.85 * contrasts["day"]
    manifests = {(tmp_path / season / "x" / "frames.jsonl").read_text() for season in seen}
    assert len(manifests) == 1
