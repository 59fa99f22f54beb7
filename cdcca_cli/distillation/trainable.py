"""What is trained: the opened part of the student, phi, their optimiser, and a PEFT export.

The overlay's parameters (norms, biases, query tokens, LoRA) are opened by name on the loaded
student, everything else stays frozen. LoRA is the families' own hook, the one that the device runs:
what is trained is what is applied. PEFT is only the format of an export; `export_peft` is the only
place that knows it.

Opened parameters become views into one flat float32 tensor, so that a step of the optimiser, a
clipping and a copy of the best state are a few operations, however many parameters there are.

Shapes: P parameters laid end to end, E rows, C and D channels.
Does not run the loop (`run`), and writes no adaptation.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cdcca_cli import files
from cdcca_cli.errors import BadData, CannotWrite, UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.names import LORA_A, LORA_B
from cdcca_cli.models import LoadedModel

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Flat:
    """Parameters laid end to end in one tensor, in the order of their names.

    values: (P,) float32, of which each parameter is a view. gradient: (P,), likewise; `backward`
    adds to it, `clear` empties it.
    """

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self._shapes = {name: named[name].shape for name in sorted(named)}
        parts = [named[name].detach().reshape(-1) for name in self._shapes]
        self.values = torch.cat(parts) if parts else torch.zeros(0)
        self.gradient = torch.zeros_like(self.values)
        values, gradients = self._split(self.values), self._split(self.gradient)
        for name, parameter in named.items():
            parameter.data, parameter.grad = values[name], gradients[name]

    def __len__(self) -> int:
        return self.values.numel()

    @property
    def names(self) -> list[str]:
        """In the order in which they lie."""
        return list(self._shapes)

    def clear(self) -> None:
        """Forget the gradients."""
        self.gradient.zero_()

    @contextmanager
    def holding(self, values_P: Tensor) -> Iterator[None]:
        """The parameters have these values inside, and their own again afterwards."""
        own_P = self.values.clone()
        self.values.copy_(values_P)
        try:
            yield
        finally:
            self.values.copy_(own_P)

    def arrays(self, values_P: Tensor) -> dict[str, np.ndarray]:
        """Float32 arrays by name, from values laid end to end."""
        views = self._split(values_P.cpu())
        return {name: view.numpy().copy() for name, view in views.items()}

    def laid_out(self, arrays: Mapping[str, np.ndarray]) -> Tensor:
        """Arrays by name, end to end as `values` is, on its device."""
        parts = [torch.from_numpy(np.asarray(arrays[name])).reshape(-1) for name in self._shapes]
        return torch.cat(parts).to(self.values.device) if parts else torch.zeros(0)

    def means(self, values_P: Tensor) -> dict[str, float]:
        """The mean of each parameter's values, by name."""
        return {name: float(view.double().mean()) for name, view in self._split(values_P).items()}

    def _split(self, values_P: Tensor) -> dict[str, Tensor]:
        parts = values_P.split([shape.numel() for shape in self._shapes.values()])
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}


class Adam:
    """torch's Adam on flat parameters, without weight decay, its state laid open for `state`.

    Decay would pull norms and biases away from where the frozen model expects them, and every
    parameter that moves costs downlink. `means`, `squares` and `steps` are all that it remembers.
    """

    BETAS = (0.9, 0.98)

    def __init__(self, flats: Sequence[Flat]) -> None:
        self._values = [flat.values for flat in flats]
        self._torch = torch.optim.Adam(self._values, betas=self.BETAS)
        for flat in flats:
            flat.values.grad = flat.gradient
            self._torch.state[flat.values] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(flat.values),
                "exp_avg_sq": torch.zeros_like(flat.values),
            }
        states = [self._torch.state[values] for values in self._values]
        self.means: list[Tensor] = [state["exp_avg"] for state in states]
        self.squares: list[Tensor] = [state["exp_avg_sq"] for state in states]

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return int(self._torch.state[self._values[0]]["step"])

    @steps.setter
    def steps(self, steps: int) -> None:
        for values in self._values:
            self._torch.state[values]["step"].fill_(steps)

    def mean_squares(self, place: int) -> Tensor:
        """The running mean of the squared (clipped) gradients of flat number `place`, without the
        pull to zero of a mean that began there."""
        return self.squares[place] / (1 - self.BETAS[1] ** max(self.steps, 1))

    def step(self, lr: float, clip_norm: float) -> Tensor:
        """One step, after the gradients of all flats together are clipped to `clip_norm`.

        Returns: the norm that they had before.
        """
        norm = nn.utils.clip_grad_norm_(self._values, clip_norm)
        for group in self._torch.param_groups:
            group["lr"] = lr
        self._torch.step()
        return norm


class RunningMean:
    """Flat parameters averaged over the steps: mean <- d * mean + (1 - d) * values.

    values: (P,), at first the parameters as they are.
    """

    def __init__(self, flat: Flat, decay: float) -> None:
        self._flat, self._decay = flat, decay
        self.values = flat.values.clone()

    def update(self) -> None:
        """After a step."""
        self.values.lerp_(self._flat.values, 1 - self._decay)


def open_overlay(
    student: LoadedModel,
    overlay: Mapping[str, np.ndarray],
    alpha: float,
    groups: Sequence[str] | None = None,
) -> Flat:
    """Put `overlay` on the student and open its parameters; nothing else asks for gradients.

    Args:
        alpha: LoRA's scale is alpha / rank.
        groups: open these alone; None: all.
    Raises: UsageError if the overlay has nothing of these groups.
    """
    student.freeze()
    student.install_overlay(overlay, alpha)
    named = student.trainable()
    if groups is not None:
        wanted = _names_of(student, groups)
        for name in named.keys() - wanted:
            named[name].requires_grad_(False)
        named = {name: named[name] for name in named.keys() & wanted}
        if not named:
            raise UsageError(
                f"the student's overlay has nothing of {', '.join(groups)} to train: make it with "
                "these groups (cdcca init --groups), or give --train"
            )
    return Flat(named)


def _names_of(student: LoadedModel, groups: Sequence[str]) -> set[str]:
    """The parameters of these groups, LoRA's by their own names."""
    found: set[str] = set()
    for group, names in student.trainable_groups().items():
        if group == "lora" and group in groups:
            found |= {name + suffix for name in names for suffix in (LORA_A, LORA_B)}
        elif group in groups:
            found |= set(names)
    return found


def is_connector_frozen(student: LoadedModel, trained: Iterable[str]) -> bool:
    """Whether nothing that is trained lies before the language model."""
    return all(name.startswith(student.row.language_path + ".") for name in trained)


def initial_phi(student_ES: Tensor, teacher_EC: Tensor) -> nn.Linear:
    """phi of Eq. 5 as it starts: the ridge regression of the teacher's rows on the student's.

        W = (X' X + r I)^-1 X' Y,    X, Y centred,    r = ridge * trace(X' X) / S

    so that the first gradients say where the student differs from the teacher, not where an
    untrained phi happens to look. The ridge is the one of RIDGES that predicts each half of the
    rows best from the other half: with few rows a weak one would fit them all, and leave nothing to
    learn.

    Returns: a linear layer S -> C, float32, on the rows' device.
    """
    x_ES, y_EC = student_ES.cpu().double(), teacher_EC.cpu().double()
    half = len(x_ES) // 2
    ridge = RIDGES[-1]
    if half:
        first, second = (x_ES[:half], y_EC[:half]), (x_ES[half:], y_EC[half:])
        errors = _errors(first, second) + _errors(second, first)
        ridge = RIDGES[int(errors.argmin())]
    weight_SC, bias_C = _regression(x_ES, y_EC, ridge)
    phi = nn.Linear(x_ES.shape[1], y_EC.shape[1])
    with torch.no_grad():
        phi.weight.copy_(weight_SC.T)
        phi.bias.copy_(bias_C)
    return phi.to(student_ES.device)


def _errors(seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor]) -> Tensor:
    """The squared error on unseen rows of the regression on seen ones, for each of RIDGES."""
    x_ES, y_EC = unseen
    fits = [_regression(*seen, ridge) for ridge in RIDGES]
    return torch.stack([(x_ES @ weight + bias - y_EC).square().sum() for weight, bias in fits])


def _regression(x_ES: Tensor, y_EC: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weight (S, C) and bias (C,) of the ridge regression of y on x."""
    x_S, y_C = x_ES.mean(0), y_EC.mean(0)
    centred_ES = x_ES - x_S
    gram_SS = centred_ES.T @ centred_ES
    gram_SS.diagonal().add_(ridge * gram_SS.diagonal().mean() + torch.finfo(torch.float32).tiny)
    weight_SC = torch.linalg.solve(gram_SS, centred_ES.T @ (y_EC - y_C))
    return weight_SC, y_C - x_S @ weight_SC


def check_overlay_names(
    found: Mapping[str, np.ndarray], mirror: Mapping[str, np.ndarray], where: str
) -> None:
    """Refuse to go on from an overlay of another student.

    Raises: BadData naming the first parameter that differs.
    """
    for name in sorted(set(found) | set(mirror)):
        shapes = [list(side[name].shape) if name in side else None for side in (found, mirror)]
        if shapes[0] != shapes[1]:
            has = ["nothing" if shape is None else str(shape) for shape in shapes]
            raise BadData(
                f"{where}: {name} is {has[0]} there, {has[1]} in the student's overlay: it is an "
                "adaptation of another student: name the one it was made for"
            )


def check_peft(folder: Path, device: Device, force: bool) -> None:
    """Say before training whether an adapter can be written.

    Raises: UsageError for a student without LoRA; CannotWrite for a folder that has an adapter.
    """
    if "lora" not in device.groups:
        raise UsageError(
            f"--peft: the student trains {', '.join(device.groups)} and no LoRA, so there is no "
            "adapter: make a student with --groups lora"
        )
    taken = [name for name in ADAPTER_FILES if (folder / name).exists()]
    if taken and not force:
        raise CannotWrite(f"{folder}: has {taken[0]} already: --force replaces it")


def export_peft(folder: Path, overlay: Mapping[str, np.ndarray], device: Device) -> None:
    """Write the overlay's LoRA as an ordinary PEFT adapter of the device's checkpoint.

    `peft.PeftModel.from_pretrained(model, folder)` loads it. Norms, biases and query tokens have no
    place in an adapter and are left out.

    Raises: CannotWrite.
    """
    linears = sorted(name.removesuffix(LORA_A) for name in overlay if name.endswith(LORA_A))
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it has advice
    from peft import LoraConfig
    from safetensors.numpy import save

    config = LoraConfig(
        r=device.lora.rank,
        lora_alpha=device.lora.alpha,
        target_modules=linears,
        base_model_name_or_path=device.checkpoint,
        revision=device.revision,
        inference_mode=True,
    )
    tensors: dict[str, np.ndarray] = {}
    for name in linears:
        tensors[f"base_model.model.{name}.lora_A.weight"] = overlay[name + LORA_A]
        tensors[f"base_model.model.{name}.lora_B.weight"] = overlay[name + LORA_B]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
    except OSError as error:
        raise CannotWrite(f"{folder}: {(error.strerror or str(error)).lower()}") from error
    files.atomic_write_bytes(folder / ADAPTER_FILES[1], save(tensors, {"format": "pt"}))
