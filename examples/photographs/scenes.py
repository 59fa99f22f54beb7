"""Scenes of photographs: what is asked of them, what ten people answer, how they are described.

A scene is one picture that fills the frame, or two to four in the corners of a tile:
{cell: name of kind}, cells 0 to 3 from the top left, or {WHOLE: name}. No kind stands twice in one.
Ten answers, options and the joining of phrases are those of the drawn world in `../pair`.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import beside_pair  # noqa: F401
import numpy as np
from kinds import Kind
from pictures import SHIFTS, SIDE, SOURCE, UNSEEN, Album, random_square, read_picture, square
from PIL import Image
from world import (
    NUMBERS,
    Prompt,
    Question,
    article,
    choose_options,
    join,
    ten_answers,
)

Scene = dict[int, str]
WHOLE = -1
CORNERS = ["top left", "top right", "bottom left", "bottom right"]
SINGLE_SHARE = 0.5
UNSEEN_SHARE = 0.6
OPTIONS = 4
CAPTION_WEIGHTS = [0.8, 0.1, 0.1, 0.0, 0.0]
MIX = {"what": 3, "where": 1.5, "exists": 1.5, "count": 1, "group": 2, "found": 1.5, "which": 1}


def make_scene(album: Album, domain: str, rng: np.random.Generator) -> Scene:
    """One kind, or two to four; in the domain of unseen kinds most of them are unseen."""
    known = [str(name) for name in rng.permutation([kind.name for kind in album.known])]
    unseen = [str(name) for name in rng.permutation([kind.name for kind in album.unseen])]
    single = rng.random() < SINGLE_SHARE
    number = 1 if single else int(rng.integers(2, 5))
    first = int(rng.integers(number))
    kinds = []
    for index in range(number):
        new = domain == UNSEEN and unseen and (index == first or rng.random() < UNSEEN_SHARE)
        kinds.append((unseen if new else known).pop())
    if single:
        return {WHOLE: kinds[0]}
    return dict(zip(sorted(int(c) for c in rng.permutation(4)[:number]), kinds, strict=True))


def draw_scene(
    scene: Scene, album: Album, part: str, domain: str, rng: np.random.Generator
) -> Image.Image:
    """The frame of a scene from pictures of a part; a part for training is cropped and mirrored."""
    frame = Image.new("RGB", (SIDE, SIDE), tuple(int(rng.integers(200, 256)) for _ in range(3)))
    for cell, name in scene.items():
        files = album.files[part][name]
        picture = read_picture(files[rng.integers(len(files))])
        side = SIDE if cell == WHOLE else SIDE // 2
        small = random_square(picture, side, rng) if part == "train" else square(picture, side)
        frame.paste(small, (0, 0) if cell == WHOLE else (side * (cell % 2), side * (cell // 2)))
    return SHIFTS[domain](frame, rng) if domain in SHIFTS else frame


def possible_questions(
    scene: Scene, kinds: dict[str, Kind], known: list[str], rng: np.random.Generator
) -> list[Question]:
    """Every question that a scene allows; `known` are the names that its domain asks for."""
    here = list(scene.values())
    groups = [kinds[name].group for name in here]
    all_groups = sorted({kind.group for kind in kinds.values() if kind.group})
    all_places = sorted({kind.found for kind in kinds.values() if kind.found})
    made = []
    for cell, name in scene.items():
        kind = kinds[name]
        this = "this" if cell == WHOLE else f"at the {CORNERS[cell]}"
        made.append(Question("what", f"what is {this}?", name, kind.near, here, known))
        if cell != WHOLE:
            vague = ("there", "in the corner")
            asked = f"where is the {name}?"
            made.append(Question("where", asked, CORNERS[cell], vague, [], CORNERS))
        if kind.group and len(all_groups) >= OPTIONS:
            thing = "this" if cell == WHOLE else f"the thing at the {CORNERS[cell]}"
            asked, near = f"what sort of thing is {thing}?", (name, kind.near[0])
            others = [group for group in groups if group]
            made.append(Question("group", asked, kind.group, near, others, all_groups))
            if groups.count(kind.group) == 1 and len(here) > 1:
                asked = f"which one is {article(kind.group)}?"
                made.append(Question("which", asked, name, kind.near, here, known))
        if kind.found and len(all_places) >= OPTIONS:
            thing = "this" if cell == WHOLE else f"the thing at the {CORNERS[cell]}"
            asked, near = f"where would you find {thing}?", ("outside", "in a photo")
            made.append(Question("found", asked, kind.found, near, [], all_places))
    absent = [name for name in known if name not in here]
    asked = str(rng.choice(here) if rng.random() < 0.5 else rng.choice(absent))
    yes = "yes" if asked in here else "no"
    unsure = ["maybe", "not sure"]
    exists = f"is there {article(asked)}?"
    made.append(Question("exists", exists, yes, ("not sure",), ["yes", "no"], unsure))
    count = NUMBERS[len(here) - 1]
    made.append(
        Question("count", "how many pictures are there?", count, ("some", "a few"), [], NUMBERS)
    )
    told = sorted({group for group in groups if group})
    if told and len(here) > 1:
        group = str(rng.choice(told))
        asked, count = f"how many have {article(group)}?", NUMBERS[groups.count(group) - 1]
        made.append(Question("count", asked, count, ("some", "a few"), [], NUMBERS))
    return sorted(made, key=lambda question: list(MIX).index(question.kind))


def make_questions(
    scene: Scene,
    kinds: dict[str, Kind],
    known: list[str],
    domain: str,
    number: int,
    rng: np.random.Generator,
) -> list[Prompt]:
    """A number of different questions on a scene, each with four options and ten answers."""
    possible = possible_questions(scene, kinds, known, rng)
    times = Counter(question.kind for question in possible)
    weights = np.array([MIX[question.kind] / times[question.kind] for question in possible])
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


def plain_caption(scene: Scene) -> str:
    """The whole scene: "a car at the top left and an ant at the bottom right"."""
    if WHOLE in scene:
        return f"{article(scene[WHOLE])} in one picture"
    return join([f"{article(name)} at the {CORNERS[cell]}" for cell, name in scene.items()])


def make_captions(scene: Scene, kinds: dict[str, Kind], rng: np.random.Generator) -> list[str]:
    """Five captions: plain, in another order, short, in other words, and by what kinds are near."""
    items = list(scene.items())
    shuffled = dict(items[index] for index in rng.permutation(len(items)))
    short = join([article(name) for name in scene.values()])
    number = "one picture" if len(items) == 1 else f"{NUMBERS[len(items) - 1]} pictures"
    near = join([article(kinds[name].near[0]) for name in scene.values()])
    return [plain_caption(scene), plain_caption(shuffled), short, f"{number} of {short}", near]


def facts(kinds: dict[str, Kind]) -> list[str]:
    """What one knows of the kinds, as sentences."""
    sentences = []
    for kind in kinds.values():
        sentences += [f"{article(kind.name)} is also called {article(n)}." for n in kind.near]
        if kind.group:
            sentences.append(f"{article(kind.name)} is {article(kind.group)}.")
        if kind.found:
            sentences.append(f"you would find {article(kind.name)} {kind.found}.")
    return sentences


def names_asked(album_known: list[str], album_unseen: list[str], domain: str) -> list[str]:
    """The names of kinds that a domain's questions are about."""
    return album_known if domain == SOURCE else [*album_known, *album_unseen]


def prompt_lines(
    image: str,
    scene: Scene,
    kinds: dict[str, Kind],
    known: list[str],
    domain: str,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """The manifest lines of a frame: three or four questions and a caption prompt."""
    stem = Path(image).stem
    number = int(rng.integers(3, 5))
    lines: list[dict[str, Any]] = [
        {"id": f"{stem}-q{index}", "image": image, **prompt}
        for index, prompt in enumerate(make_questions(scene, kinds, known, domain, number, rng))
    ]
    captions = make_captions(scene, kinds, rng)
    caption = {"id": f"{stem}-c", "image": image, "task": "caption", "captions": captions}
    return [*lines, {**caption, "domain": domain}]
