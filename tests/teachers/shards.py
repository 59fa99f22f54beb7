"""Shards with pictures, for tests of served teachers."""

import numpy as np

from cdcca_cli.formats.shard import Coding, Layout, Question, Shard
from cdcca_cli.payloads.pictures import encode

TOWER = "sha256:" + "1" * 64


def shard(number: int, questions: list[Question] | None = None, media: str = "image/png") -> Shard:
    """A frame of its own: a colour, with a pattern that only this number has."""
    from PIL import Image

    values = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    if media == "image/png":
        import io

        from cdcca_cli.formats.pictures import bare

        out = io.BytesIO()
        image.save(out, "PNG")
        picture = bare(out.getvalue())
    else:
        picture = encode(image, media)
    return Shard(
        frame=f"frame-{number:03}",
        image=f"{number}.png",
        domain=None,
        tokens=np.zeros((0, 0), np.float32),
        positions=np.arange(4, dtype=np.int32),
        num_tokens=4,
        tower=TOWER,
        questions=[*(usual(number) if questions is None else questions)],
        coding=Coding("frame"),
        picture=picture,
        layout=Layout((2, 2)),
    )


def usual(number: int) -> list[Question]:
    """A free question, one of choices, a caption."""
    return [
        Question(f"{number}-a", f"Is there a boat in {number}?", "vqa"),
        Question(f"{number}-b", "What colour is it?", "vqa", ["red", "blue", "green", "no"]),
        Question(f"{number}-c", None, "caption"),
    ]
