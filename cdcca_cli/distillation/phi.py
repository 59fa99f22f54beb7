"""phi of Eq. 5, the layer between the student's width and the teacher's: how it begins.

Shapes: E rows, C teacher channels, S student channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def initial_phi(
    student_ES: Tensor, teacher_EC: Tensor, ridges: Sequence[float] = RIDGES
) -> nn.Linear:
    """phi of Eq. 5 at the start: the ridge regression of the teacher's rows on the student's.

        W = (X' X + r I)^-1 X' Y,    X, Y centred,    r = ridge * trace(X' X) / S

    The ridge is the one of `ridges` that predicts each half of the rows best from the other half:
    with few rows a weak one would fit them all, and leave nothing to learn.

    Returns: a linear layer S -> C, float32, on the rows' device.
    """
    x_ES, y_EC = student_ES.cpu().double(), teacher_EC.cpu().double()
    half = len(x_ES) // 2
    ridge = ridges[-1]
    if half:
        first, second = (x_ES[:half], y_EC[:half]), (x_ES[half:], y_EC[half:])
        errors = _errors(first, second, ridges) + _errors(second, first, ridges)
        ridge = ridges[int(errors.argmin())]
    weight_SC, bias_C = _regression(x_ES, y_EC, ridge)
    phi = nn.Linear(x_ES.shape[1], y_EC.shape[1])
    with torch.no_grad():
        phi.weight.copy_(weight_SC.T)
        phi.bias.copy_(bias_C)
    return phi.to(student_ES.device)


def _errors(
    seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor], ridges: Sequence[float]
) -> Tensor:
    """The squared error on unseen rows of the regression on seen ones, for each ridge."""
    x_ES, y_EC = unseen
    fits = [_regression(*seen, ridge) for ridge in ridges]
    return torch.stack([(x_ES @ weight + bias - y_EC).square().sum() for weight, bias in fits])


def _regression(x_ES: Tensor, y_EC: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight (S, C) and bias (C,) of the ridge regression of y on x."""
    x_S, y_C = x_ES.mean(0), y_EC.mean(0)
    centred_ES = x_ES - x_S
    gram_SS = centred_ES.T @ centred_ES
    gram_SS.diagonal().add_(ridge * gram_SS.diagonal().mean() + torch.finfo(torch.float32).tiny)
    weight_SC = torch.linalg.solve(gram_SS, centred_ES.T @ (y_EC - y_C))
    return weight_SC, y_C - x_S @ weight_SC
