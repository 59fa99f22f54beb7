"""Whether a served teacher receives the picture, asked before the work begins.

Servers that drop the picture answer all the same, from the words of the question. So some questions
are asked with their picture and with a blank one of its size and media type: if no answer and no
log-probability moves, the picture does not arrive.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.formats.pictures import Picture
from cdcca_cli.serving.openai import Reply
from cdcca_cli.teachers.chat import Ask
from cdcca_cli.text import counted

NUM_FRAMES = 6
"""Frames that are asked about."""
MOVED = 0.1
"""Nats by which a log-probability moves at least if the picture arrives; servers that answer
several requests at once change it by some hundredths by themselves."""
_LIKELY = math.log(0.01)


def check(asks: Sequence[Ask], answer: Callable[[Ask], Reply], teacher: str) -> int:
    """Ask with the picture and with a blank one. Args: asks: of different frames.

    Returns: the number of requests. Raises: Unavailable if the picture does not arrive, or if no
        answer has a word.
    """
    moves, replies = [], []
    for ask in asks:
        blank = replace(ask, picture=blank_like(ask.picture))
        try:
            seen, unseen = answer(ask), answer(blank)
        except BadData:  # this one is named when its turn comes
            continue
        replies.append(seen)
        moves.append(moved(seen, unseen))
    if not replies:
        return 2 * len(asks)
    of = counted(len(replies), "question")
    if all(not reply.text.strip() for reply in replies):
        why = "were cut" if all(reply.is_cut for reply in replies) else "are empty"
        raise Unavailable(
            f"{teacher}: its answers to {of} {why} before the first word: a model that thinks "
            "first? Switch that off at the server, or by `extra`, or give `max_tokens` there"
        )
    if max(moves) < MOVED:
        raise Unavailable(
            f"{teacher}: does not receive the picture: {of} asked with it and with a blank one had "
            "the same answers and log-probabilities: serve a model that sees, with its vision "
            "part, or set `skip_check`"
        )
    return 2 * len(asks)


def moved(one: Reply, other: Reply) -> float:
    """By how many nats two answers to one question differ, up to where their texts part.

    Without log-probabilities: infinity for different texts.
    """
    if not one.tokens or not other.tokens:
        return math.inf if one.text.strip() != other.text.strip() else 0.0
    most = 0.0
    for first, second in zip(one.tokens, other.tokens, strict=False):
        tops = [dict(token.top) | {token.piece: token.logp} for token in (first, second)]
        least = [min(top.values()) for top in tops]
        for piece in {*tops[0], *tops[1]}:
            values = [top.get(piece) for top in tops]
            if all(value is None or value < _LIKELY for value in values):
                continue
            # What is not listed has at most the least that is.
            a, b = (
                low if value is None else value for value, low in zip(values, least, strict=True)
            )
            most = max(most, abs(a - b))
        if first.piece != second.piece:
            break
    return most


def blank_like(picture: Picture) -> Picture:
    """A grey picture of the same media type and size. Raises: Unavailable without an encoder."""
    return _blank(picture.media, picture.size)


@cache
def _blank(media: str, size: tuple[int, int]) -> Picture:
    from PIL import Image

    Image.init()
    name = media.removeprefix("image/").upper()
    if name not in Image.SAVE:
        raise Unavailable(
            f"this Pillow cannot write {media}, which the check of the picture needs: "
            "pip install 'pillow>=11.3', or set `skip_check`"
        )
    out = io.BytesIO()
    Image.new("RGB", size, (128, 128, 128)).save(out, name)
    return Picture(out.getvalue(), media, size)
