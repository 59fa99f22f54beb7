"""The real captions that lie beside the project, for the tests of captions and their tokens."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "coco"


def captions_in_file_order(folder: Path) -> list[str]:
    """The 25,014 captions of val2017."""
    return [annotation["caption"] for annotation in _annotations(folder)]


def human_captions(folder: Path) -> dict[int, list[str]]:
    """The captions of each image of val2017, in the order in which the file comes to the images."""
    human: dict[int, list[str]] = {}
    for annotation in _annotations(folder):
        human.setdefault(annotation["image_id"], []).append(annotation["caption"])
    return human


def _annotations(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "captions_val2017.json").read_text())[
        "annotations"
    ]
    return found


def made_captions(folder: Path) -> dict[str, dict[int, str]]:
    """The captions of two systems, by the name that reference_scores.json has for them."""
    files = {
        "ruizewang fakecap (4989)": "ruizewang_fakecap_val2017.json",
        "tylin fakecap on the 126 overlapping images": "tylin_fakecap_val2014.json",
    }
    return {
        name: {one["image_id"]: one["caption"] for one in json.loads((folder / file).read_text())}
        for name, file in files.items()
    }


def prediction_sets(folder: Path) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Predictions and references of every set in reference_scores.json, by its name there."""
    human = human_captions(folder)
    ids = list(human)
    sets = {
        "human leave-one-out: caption#0 vs the rest, 5000 images": (
            [human[i][0] for i in ids],
            [human[i][1:] for i in ids],
        ),
        "wrong-image: caption#0 of the next image in file order vs all refs": (
            [human[i][0] for i in ids[1:] + ids[:1]],
            [human[i] for i in ids],
        ),
    }
    for name, made in made_captions(folder).items():
        known = [i for i in ids if i in made]
        sets[name] = ([made[i] for i in known], [human[i] for i in known])
    return sets
