"""A connector's first lesson, without the language model: to name what a place shows.

Each place's feature is drawn towards the word embeddings of the kind and of the corner that it
shows, as the frozen language model has them, among the names of all kinds and corners. So the
language model begins with a picture that reads like words: a minute for what hundreds of steps
through 30 layers would take.

Shapes: B batch, N places, C channels, K names.
"""

from pathlib import Path

import beside_photographs  # noqa: F401
import numpy as np
import torch
from checkpoints import Model, begin_connector, parts, see
from language import IGNORE
from make_world import read_kinds
from prompts import Frame, pixels
from scenes import CORNERS, WHOLE
from torch import Tensor, nn
from training import Log, Plan, Schedule, make_optimizer
from transformers import PreTrainedTokenizerFast

SHARPNESS = 5.0
SIZE_WEIGHT = 0.1
ONE_PICTURE = "one picture"
LOG_EVERY = 100


class Names:
    """Names as the language model's own word embeddings, (K, C), less the mean of all words."""

    def __init__(
        self, language: nn.Module, tokenizer: PreTrainedTokenizerFast, names: list[str]
    ) -> None:
        table_VC = language.get_input_embeddings().weight.detach().float()
        self.mean_C = table_VC.mean(0)
        self._number = {name: number for number, name in enumerate(names)}
        spelt = [tokenizer(f" {name}", add_special_tokens=False).input_ids for name in names]
        self._directions_KC = nn.functional.normalize(
            torch.stack([(table_VC[ids] - self.mean_C).mean(0) for ids in spelt]), dim=-1
        )

    def loss(self, features_BNC: Tensor, names_BN: list[list[str | None]]) -> Tensor:
        """Mean cross-entropy of the name of each place; None, an empty corner, does not count."""
        truth_BN = torch.tensor(
            [[IGNORE if name is None else self._number[name] for name in row] for row in names_BN]
        )
        logits_BNK = SHARPNESS * (features_BNC - self.mean_C) @ self._directions_KC.T
        return nn.functional.cross_entropy(logits_BNK.flatten(0, 1), truth_BN.flatten())


def places(frame: Frame, side: int) -> tuple[list[str | None], list[str]]:
    """The kind and the corner at each of `side` times `side` places, row by row."""
    scene = {int(cell): kind for cell, kind in frame.lines[0]["scene"].items()}
    kinds: list[str | None] = []
    corners: list[str] = []
    for place in range(side * side):
        corner = 2 * (2 * (place // side) // side) + 2 * (place % side) // side
        kinds.append(scene.get(WHOLE, scene.get(corner)))
        corners.append(ONE_PICTURE if WHOLE in scene else CORNERS[corner])
    return kinds, corners


def learn_names(
    model: Model,
    tokenizer: PreTrainedTokenizerFast,
    world: Path,
    pools: list[list[Frame]],
    is_new: bool,
    log: Log,
    plan: Plan,
) -> None:
    """Train the connector to name the places of frames of the pools, each as often as another.

    Args: is_new: it is random, so its scale is set first.
    """
    _, connector, language = parts(model)
    rng = np.random.default_rng(plan.seed)
    if is_new:
        begin_connector(model, see(model, pixels(pools[0][:200])))
    kinds = Names(language, tokenizer, [kind.name for some in read_kinds(world) for kind in some])
    corners = Names(language, tokenizer, [ONE_PICTURE, *CORNERS])
    deviation = language.get_input_embeddings().weight.detach().float().std()
    optimizer = make_optimizer(connector, plan.peak_rate)
    schedule = Schedule(optimizer, plan)
    for step in range(plan.steps):
        frames = []
        for _ in range(plan.batch_size):
            pool = pools[int(rng.integers(len(pools)))]
            frames.append(pool[int(rng.integers(len(pool)))])
        features_BNC = connector(see(model, pixels(frames)))
        side = round(features_BNC.shape[1] ** 0.5)
        kinds_BN, corners_BN = zip(*[places(frame, side) for frame in frames], strict=True)
        kind_loss = kinds.loss(features_BNC, list(kinds_BN))
        corner_loss = corners.loss(features_BNC, list(corners_BN))
        size = ((features_BNC - kinds.mean_C) / deviation).square().mean()
        schedule.step(step, kind_loss + corner_loss + SIZE_WEIGHT * size, connector)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == plan.steps:
            losses = {"kind": kind_loss, "corner": corner_loss, "size": size}
            named = {name: round(loss.item(), 3) for name, loss in losses.items()}
            log.write("names", step + 1, **named)
