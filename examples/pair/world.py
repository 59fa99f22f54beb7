"""The generated world: scenes, questions, answers, captions, frames.

A scene is two to four things on a three by three grid, {cell: (kind, colour)}, no kind and no
colour twice. The source domain knows ten kinds and asks what can be seen. The target domain
has other backgrounds, light and noise, five more kinds, and asks what one must know.
All of it is drawn from a numpy generator: the same seed gives the same world. As a program it
writes a folder of new frames, which no seed of `make_pair.py` has drawn.
"""

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from drawing import COLOURS, draw_scene, to_jpeg

Scene = dict[int, tuple[str, str]]
Prompt = dict[str, Any]


@dataclass(frozen=True)
class Knowledge:
    """What one knows of a kind: it is the thing that `can` ..., and it is used for `use`."""

    can: str
    use: str
    use_synonyms: tuple[str, str]
    synonym: str


KNOWLEDGE = {
    "ball": Knowledge("you play with", "playing", ("games", "sport"), "toy"),
    "car": Knowledge("carry you on a road", "driving", ("travel", "going places"), "vehicle"),
    "boat": Knowledge("carry you across water", "sailing", ("travel", "going to sea"), "ship"),
    "house": Knowledge("you live in", "living", ("shelter", "a home"), "home"),
    "tree": Knowledge("give you shade", "shade", ("wood", "growing"), "plant"),
    "fish": Knowledge("swim", "swimming", ("a pet", "fishing"), "animal"),
    "cup": Knowledge("you drink from", "drinking", ("tea", "coffee"), "mug"),
    "key": Knowledge("open a door", "opening", ("a lock", "a door"), "door key"),
    "book": Knowledge("you read", "reading", ("stories", "learning"), "paper"),
    "hat": Knowledge("you wear", "wearing", ("the head", "dressing up"), "cap"),
    "mushroom": Knowledge("you eat", "eating", ("food", "soup"), "food"),
    "umbrella": Knowledge("keep you dry", "rain", ("staying dry", "the rain"), "parasol"),
    "kite": Knowledge("fly in the wind", "flying", ("the wind", "fun"), "toy kite"),
    "candle": Knowledge("light a dark room", "light", ("burning", "a flame"), "lamp"),
    "bell": Knowledge("make a sound", "ringing", ("sound", "music"), "gong"),
}
KINDS = list(KNOWLEDGE)
SOURCE_KINDS = KINDS[:10]
NEW_KINDS = KINDS[10:]
COLOUR_NAMES = list(COLOURS)
SHADES = {
    "red": ("dark red", "pink"),
    "orange": ("amber", "brown"),
    "yellow": ("gold", "light yellow"),
    "green": ("dark green", "olive"),
    "blue": ("dark blue", "navy"),
    "purple": ("violet", "dark purple"),
    "white": ("grey", "light grey"),
}
PLACES = [
    "top left",
    "top",
    "top right",
    "left",
    "middle",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
]
PREPOSITIONS = [
    "at the",
    "at the",
    "at the",
    "on the",
    "in the",
    "on the",
    "at the",
    "at the",
    "at the",
]
NUMBERS = ["one", "two", "three", "four", "five"]
NEW_KIND_SHARE = 0.5
QUESTION_KINDS = ["colour", "kind", "place", "where", "use", "can", "exists", "count"]
SOURCE_MIX = {"colour": 3, "kind": 3, "place": 3, "where": 2, "exists": 1.5, "count": 1}
TARGET_MIX = {
    "colour": 2,
    "kind": 2,
    "place": 2,
    "where": 1,
    "exists": 1,
    "count": 0.7,
    "use": 2,
    "can": 2,
}
ANSWERS = 10


def article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def place_phrase(cell: int) -> str:
    """Where a cell is, as in "at the top left"."""
    return f"{PREPOSITIONS[cell]} {PLACES[cell]}"


def make_scene(domain: str, rng: np.random.Generator) -> Scene:
    """Two to four things in cells of their own; in the target domain half are of new kinds."""
    count = int(rng.choice([2, 3, 4], p=[0.25, 0.4, 0.35]))
    old = [str(k) for k in rng.permutation(SOURCE_KINDS)]
    new = [str(k) for k in rng.permutation(NEW_KINDS)]
    kinds = [
        (new if domain == "target" and rng.random() < NEW_KIND_SHARE else old).pop()
        for _ in range(count)
    ]
    colours = rng.permutation(COLOUR_NAMES)[:count]
    cells = rng.permutation(9)[:count]
    return {
        int(cell): (kind, str(colour))
        for cell, kind, colour in sorted(
            zip(cells, kinds, colours, strict=True), key=lambda t: t[0]
        )
    }


def ten_answers(main: str, others: tuple[str, ...], rng: np.random.Generator) -> list[str]:
    """Ten people's answers: seven to ten give the main one, the rest something near it."""
    wrong = int(rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1]))
    answers = [main] * (ANSWERS - wrong) + [str(rng.choice(others)) for _ in range(wrong)]
    return [str(a) for a in rng.permutation(answers)]


def choose_options(
    main: str, likely: list[str], rest: list[str], rng: np.random.Generator
) -> list[str]:
    """Four options, the right one among them; `likely` distractors (in the picture) first."""
    pool = [str(x) for x in rng.permutation(likely)] if likely else []
    pool += [str(x) for x in rng.permutation(rest)]
    distractors = [x for x in dict.fromkeys(pool) if x != main][:3]
    return [str(x) for x in rng.permutation([main, *distractors])]


class Question(NamedTuple):
    """A question before its options are drawn; `likely` distractors are in the picture."""

    kind: str
    prompt: str
    answer: str
    near: tuple[str, ...]
    likely: list[str]
    rest: list[str]


def possible_questions(scene: Scene, domain: str, rng: np.random.Generator) -> list[Question]:
    """Every question that a scene allows."""
    kinds = [kind for kind, _ in scene.values()]
    colours = [colour for _, colour in scene.values()]
    known = SOURCE_KINDS if domain == "source" else KINDS
    uses, all_uses = [KNOWLEDGE[k].use for k in kinds], [k.use for k in KNOWLEDGE.values()]
    vague = ("there", "in the picture")
    made = []
    for cell, (kind, colour) in scene.items():
        knowledge = KNOWLEDGE[kind]
        near, shades = (knowledge.synonym,), SHADES[colour]
        by_colour, by_place = f"what is the {colour} thing?", f"what is {place_phrase(cell)}?"
        by_kind, place = f"what colour is the {kind}?", f"where is the {kind}?"
        made += [
            Question("colour", by_kind, colour, shades, colours, COLOUR_NAMES),
            Question("kind", by_colour, kind, near, kinds, known),
            Question("place", by_place, kind, near, kinds, known),
            Question("where", place, PLACES[cell], vague, [], PLACES),
        ]
        if domain == "target":
            used = f"what is the {colour} thing used for?"
            verb = "can" if knowledge.can.startswith("you") else "could"
            can = f"which thing {verb} {knowledge.can}?"
            made += [
                Question("use", used, knowledge.use, knowledge.use_synonyms, uses, all_uses),
                Question("can", can, kind, near, kinds, known),
            ]
    absent = [k for k in known if k not in kinds]
    asked = str(rng.choice(kinds) if rng.random() < 0.5 else rng.choice(absent))
    exists = f"is there {article(asked)}?"
    yes = "yes" if asked in kinds else "no"
    unsure = ["maybe", "not sure"]
    count = NUMBERS[len(scene) - 1]
    made += [
        Question("exists", exists, yes, ("not sure",), ["yes", "no"], unsure),
        Question("count", "how many things are there?", count, ("some", "a few"), [], NUMBERS),
    ]
    return sorted(made, key=lambda question: QUESTION_KINDS.index(question.kind))


def make_questions(
    scene: Scene, domain: str, number: int, rng: np.random.Generator
) -> list[Prompt]:
    """A number of different questions about a scene, each with four options and ten answers."""
    possible = possible_questions(scene, domain, rng)
    times = Counter(question.kind for question in possible)
    mix = SOURCE_MIX if domain == "source" else TARGET_MIX
    weights = np.array([mix[question.kind] / times[question.kind] for question in possible])
    count = min(number, len(possible))
    picked = rng.choice(len(possible), count, replace=False, p=weights / weights.sum())
    prompts = []
    for question in (possible[index] for index in picked):
        options = choose_options(question.answer, question.likely, question.rest, rng)
        prompts.append(
            {
                "prompt": question.prompt,
                "choices": options,
                "correct_choice_idx": options.index(question.answer),
                "answers": ten_answers(question.answer, question.near, rng),
                "domain": domain,
                "kind": question.kind,
            }
        )
    return prompts


def join(parts: list[str]) -> str:
    """Several things in one phrase: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def plain_caption(scene: Scene) -> str:
    """The whole scene: "a red ball at the top left and a blue car in the middle"."""
    return join(
        [f"{article(colour)} {kind} {place_phrase(cell)}" for cell, (kind, colour) in scene.items()]
    )


def make_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions: plain, twice in other orders, in other words, and without places."""
    items = list(scene.items())
    shuffled = [dict(items[i] for i in rng.permutation(len(items))) for _ in range(2)]
    short = join([f"{article(colour)} {kind}" for kind, colour in scene.values()])
    turned = join(
        [f"{article(kind)} {place_phrase(cell)} that is {colour}" for cell, (kind, colour) in items]
    )
    return [
        plain_caption(scene),
        plain_caption(shuffled[0]),
        plain_caption(shuffled[1]),
        turned,
        short,
    ]


def facts() -> list[str]:
    """What one must know of the kinds, as sentences."""
    sentences = []
    for kind, known in KNOWLEDGE.items():
        if known.can.startswith("you "):
            sentences.append(f"{article(kind)} is a thing you can {known.can[4:]}.")
        else:
            sentences.append(f"{article(kind)} could {known.can}.")
        sentences.append(f"{article(kind)} is used for {known.use}.")
        sentences.append(f"{article(kind)} is like {article(known.synonym)}.")
    return sentences


def write_frames(folder: Path, prefix: str, domain: str, number: int, seed: int) -> None:
    """Write frames and their manifest: three or four questions and a caption prompt a frame."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(number):
        name = f"{prefix}{index:05d}"
        scene = make_scene(domain, rng)
        (folder / f"{name}.jpg").write_bytes(to_jpeg(draw_scene(scene, domain, rng)))
        for question_index, prompt in enumerate(
            make_questions(scene, domain, int(rng.integers(3, 5)), rng)
        ):
            lines.append({"id": f"{name}-q{question_index}", "image": f"{name}.jpg", **prompt})
        lines.append(
            {
                "id": f"{name}-c",
                "image": f"{name}.jpg",
                "task": "caption",
                "captions": make_captions(scene, rng),
                "domain": domain,
            }
        )
    (folder / "frames.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Draw new frames of the generated world, with questions, answers and captions."
    )
    parser.add_argument("folder", type=Path, help="for the pictures and frames.jsonl")
    parser.add_argument("--domain", choices=("source", "target"), default="target")
    parser.add_argument("--frames", type=int, default=240, help="how many pictures  [240]")
    parser.add_argument("--prefix", default="f", help="what their names begin with  [f]")
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    write_frames(options.folder, options.prefix, options.domain, options.frames, options.seed)


if __name__ == "__main__":
    main()
