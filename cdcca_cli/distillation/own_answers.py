"""The student's own answers, greedy, for the methods that ask no teacher.

Shapes: B batch, A answer tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cdcca_cli.distillation.methods import Course
from cdcca_cli.models import Spliced
from cdcca_cli.models.decoding import right_padded
from cdcca_cli.models.settings import MAX_NEW_TOKENS


@torch.no_grad()
def own_answers(course: Course, batch: Sequence[int], spliced: Spliced) -> Tensor:
    """(B, A): the tokens that the student chooses now, padded on the right with -100.

    An answer ends where its task's longest does, at the latest.
    """
    tasks = [course.lessons.examples[number].ask.task for number in batch]
    most = [MAX_NEW_TOKENS[task] for task in tasks]
    made = course.student.generate(spliced, max(most))
    rows = [ids[:length] for ids, length in zip(made.ids, most, strict=True)]
    return right_padded(rows).to(course.student.device)
