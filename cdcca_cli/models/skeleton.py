"""A model without its weights (`loading.outline`): its parts, and where the weights would go.

`TowerTensors` finds the tower's parameters among the tensors of a checkpoint, as transformers does
when it loads them (it renames and splits some), so that a tower's digest needs the bytes of the
tower alone. `seen` shows how many visual tokens a picture becomes, of how many channels.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cdcca_cli.errors import BadData
from cdcca_cli.families import Family
from cdcca_cli.models import watching
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.pictures import Seen

if TYPE_CHECKING:
    from PIL.Image import Image

PARTS = ("tower", "connector", "language model", "audio tower")
_KEPT = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")


def part_of(name: str, row: Family) -> str:
    """The part, one of PARTS, that a parameter belongs to, by its name."""
    if row.in_tower(name):
        return "tower"
    if name.startswith((f"{row.language_path}.", "lm_head.")):
        return "language model"
    return "audio tower" if "audio" in name else "connector"


def tower_names(model: LoadedModel) -> dict[str, str]:
    """The tower's parameters: their names in the module, by their names inside the tower."""
    names = (name for name, _ in model.module.named_parameters())
    return {inside: name for name in names if (inside := model.row.in_tower(name))}


@torch.no_grad()
def seen(model: LoadedModel, image: "Image") -> Seen:
    """What an outline sees of an image: as many tokens as the model, of as many channels.

    Their values mean nothing: the tower's blocks pass on what they get, and all around is zero, the
    stages of a tower of convolutions too, which make pictures smaller.
    Raises: BadData if the picture does not go through.
    """
    parts = model.block_modules(model.num_blocks) if model.num_blocks else []
    blocks = [block for block in model.blocks if all(block is not part for part in parts)]
    inside = {id(one) for block in blocks for one in block.parameters()}
    for name, parameter in list(model.module.named_parameters()):
        is_looking = part_of(name, model.row) in ("tower", "connector")
        if parameter.is_meta and is_looking and id(parameter) not in inside:
            path, _, leaf = name.rpartition(".")
            zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
            setattr(model.module.get_submodule(path), leaf, nn.Parameter(zeros, False))
    for block in blocks:
        block.forward = _passed_on
    try:
        (found,) = model.see(model.prepare([image]))
    except Exception as error:  # transformers raises whatever it likes
        words = " ".join(str(error).split())[:200]
        raise BadData(f"{model.checkpoint}: it cannot look at a picture: {words}") from error
    return found


def _passed_on(*args: Any, **kwargs: Any) -> Tensor:
    return watching.first_tensor(args, kwargs)


Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""The dtype and the shape of each stored tensor, by its name in the checkpoint."""


class TowerTensors(Mapping[str, Tensor]):
    """The tower's parameters as transformers would load them, by name inside it; read one by one.

    Raises: BadData if the checkpoint lacks one or has another shape; from [], what `read` raises.
    """

    def __init__(self, model: LoadedModel, stored: Shapes, read: Callable[[str], Tensor]) -> None:
        """Args: model: an outline. stored: all of the checkpoint's tensors."""
        self._module, self._read = model.module, read
        self._names = tower_names(model)
        try:
            self._loads = _loads(model.module, stored)
        except Exception as error:  # transformers raises whatever it likes
            words = " ".join(str(error).split())[:200]
            raise BadData(f"{model.checkpoint}: the weights cannot be laid out: {words}") from error
        self._parameters = dict(model.module.named_parameters())
        self._ready: dict[str, Tensor] = {}  # of a stored tensor that makes several parameters
        self._kept = {name for part in model.module.modules() for name in _kept(part)}
        for name in self._names.values():
            shape, load = tuple(self._parameters[name].shape), self._loads.get(name)
            if load is None:
                raise BadData(f"{model.checkpoint}: the weights lack {name}")
            if load.targets[name] != shape:
                raise BadData(
                    f"{model.checkpoint}: {name} has the shape {list(load.targets[name])} in the "
                    f"weights, {list(shape)} by config.json: they do not belong together"
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, without reading any."""
        return {inside: tuple(self._parameters[n].shape) for inside, n in self._names.items()}

    def __getitem__(self, inside: str) -> Tensor:
        name = self._names[inside]
        if name not in self._ready:
            self._ready |= self._loads[name].made(self._module, self._read)
        return self._as_loaded(name, self._ready.pop(name))

    def _as_loaded(self, name: str, tensor: Tensor) -> Tensor:
        """Cast to the dtype that config.json names, in which the digest of a load is taken."""
        dtype = self._parameters[name].dtype
        is_kept = dtype != torch.float32 and not self._kept.isdisjoint(name.split("."))
        return tensor.to(torch.float32 if is_kept else dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass
class _Load:
    """Stored tensors that together make one or more parameters.

    sources: their names, with the patterns of the converter that they match. targets: the shapes
    of the parameters, by name. converter: of transformers; None if a tensor is taken as it is.
    """

    name: str
    sources: list[tuple[str, str | None]]
    targets: dict[str, tuple[int, ...]]
    converter: Any = None

    def made(self, module: Any, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        if self.converter is None:
            return {self.name: read(self.sources[0][0])}
        converter = deepcopy(self.converter)
        for source, pattern in self.sources:
            converter.add_tensor(self.name, source, pattern, read(source))
        found = converter.convert(self.name, model=module, config=module.config)
        return {
            name: tensor[0] if isinstance(tensor, list) else tensor
            for name, tensor in found.items()
        }


def _loads(module: Any, stored: Shapes) -> dict[str, _Load]:
    """How each parameter is made from stored tensors, as transformers' loader finds it."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    known = module.state_dict()
    changes = conversion_mapping.get_model_conversion_mapping(module)
    renamings = [one for one in changes if isinstance(one, WeightRenaming)]
    converters = [one for one in changes if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    prefix = module.base_model_prefix
    loads: dict[str, _Load] = {}
    for source in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(source, renamings, converters, prefix, known)
        if name not in known and source in known:
            name, pattern = rename_source_key(source, [], [], prefix, known)
        if name in known:
            converter = None if pattern is None else by_pattern[pattern]
            load = loads.setdefault(name, _Load(name, [], {}, converter))
            load.sources.append((source, pattern))

    def empty(source: str) -> Tensor:
        dtype, shape = stored[source]
        return torch.empty(shape, dtype=dtype, device="meta")

    for load in loads.values():
        made = load.made(module, empty)
        load.targets = {name: tuple(tensor.shape) for name, tensor in made.items()}
    return {name: load for load in loads.values() for name in load.targets}


def _kept(part: nn.Module) -> Iterator[str]:
    """The parts of a module that transformers keeps in float32."""
    for setting in _KEPT:
        yield from getattr(part, setting, None) or ()
