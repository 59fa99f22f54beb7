"""One model: its family and parts, what a frame of 1080p costs, memory, and whether it works.

Sizes come from config.json and the headers of the weights. The weights themselves are loaded only
from a folder, and only where memory is free for them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdcca_cli import models
from cdcca_cli.config import Runtime
from cdcca_cli.doctor import frame, headers, identities, machine, memory
from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.export import takes
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.kind import kind_of_folder
from cdcca_cli.formats.names import split_groups
from cdcca_cli.models import digests, loading, overlay, skeleton
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.models.skeleton import TowerTensors, part_of
from cdcca_cli.models.sources import folder_of
from cdcca_cli.payloads import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

    from cdcca_cli.models import LoadedModel, Seen

_QUESTION = "What is it?"
_SPARE = 1.1  # of the memory estimated


@dataclass
class Outlined:
    """A checkpoint without its weights.

    tensors: where the weights are; None if it has none. is_here: whether they need not be fetched.
    device: the device folder that was named.
    """

    model: "LoadedModel"
    tensors: headers.Tensors | None
    is_here: bool
    device: Device | None

    def tower(self) -> TowerTensors | None:
        """The tower's parameters, read from the weights one by one."""
        if self.tensors is None:
            return None
        return TowerTensors(self.model, self.tensors.shapes(), self.tensors.read)


def outlined(name: str) -> Outlined:
    """A checkpoint folder, a hub id, or a device folder, which means its checkpoint.

    Raises: as `models.load`, but weights may be missing; MissingInput, BadData for a device folder.
    """
    path, device, revision = Path(name), None, None
    if path.is_dir() and kind_of_folder(path) == "device":
        device = Device.open(path)
        settings = device.settings
        name, revision = settings.checkpoint, settings.revision
        model = loading.outline(
            name,
            qformer_layers=settings.qformer_layers,
            revision=revision,
            template=settings.template,
        )
    else:
        model = loading.outline(name)
    folder = folder_of(name)
    if folder is not None:
        tensors = headers.tensors(name, headers.in_folder(folder))
        return Outlined(model, tensors, True, device)
    tensors = headers.tensors(name, headers.on_hub(name, revision))
    known = set() if tensors is None else tensors.files()
    is_here = all(headers.in_cache(name, file, revision) for file in known)
    return Outlined(model, tensors, is_here, device)


def report(name: str, on: Runtime) -> dict[str, Any]:
    """Everything that is known of a model, as JSON. Raises: as `outlined` and `models.load`."""
    found = outlined(name)
    model = found.model
    tower = found.tower()
    digest = None if tower is None else digests.of_tensors(tower)
    _check_device(found.device, digest, model.checkpoint)
    groups = _groups(model, found.device)
    photograph = frame.like_a_photograph(*frame.SIZE)
    seen = skeleton.seen(model, photograph)
    prompt = model.format_prompt(_QUESTION, "vqa")
    num_positions = model.prompt_length(prompt, seen)
    stored = {} if found.tensors is None else found.tensors.num_bytes()
    sizes = memory.sizes(
        model,
        stored=stored,
        positions=num_positions,
        tokens=seen.num_tokens,
        channels=seen.tokens.shape[1],
        trained=sum(groups.values()),
    )
    return {
        "kind": "checkpoint",
        "checkpoint": model.checkpoint,
        "family": model.family,
        "architecture": model.row.architecture,
        "connector": model.row.kind,
        "language_model": model.module.config.get_text_config().model_type,
        "parameters": _parts(model),
        "vision_blocks": model.num_blocks,
        "stored_bytes": stored,
        "digests": {"tower": digest, "vocabulary": model.vocabulary_digest},
        "payloads": ["tokens", "frame"],
        "groups": groups,
        "takes": takes.as_json(_takes(model, found.device)),
        "frame": {
            "width": frame.SIZE[0],
            "height": frame.SIZE[1],
            "tokens": seen.num_tokens,
            "channels": seen.tokens.shape[1],
            "grid": list(seen.layout.grid),
            "positions": num_positions,
            "bytes": _payload_bytes(model, seen, photograph),
        },
        "memory_bytes": {
            form: {
                "infer": sizes.to_infer(form),
                "train": sizes.to_train(form),
                "train_least": sizes.to_train(form, least=True),
            }
            for form in memory.NUM_BYTES
        },
        "memory_basis": memory.BASIS,
        "exceptions": list(_exceptions(model)),
        "identities": _identities(found, digest, sizes, on),
    }


def require(found: dict[str, Any]) -> None:
    """Raises: Unavailable if an identity was tried and does not hold."""
    failed = [one["name"] for one in found["identities"]["tried"] if one["fails"]]
    if failed:
        raise Unavailable(
            f"{found['checkpoint']}: {', '.join(failed)} does not hold with this version of "
            "transformers: use payload frame and `method` kd, and report it"
        )


def _check_device(device: Device | None, digest: str | None, checkpoint: str) -> None:
    if device is not None and digest is not None and device.settings.tower != digest:
        raise BadData(
            f"{checkpoint}: the vision tower is {digest}, the device folder was made with "
            f"{device.settings.tower}: restore that checkpoint, or run init again"
        )


def _parts(model: "LoadedModel") -> dict[str, int]:
    """Number of parameters by part."""
    found = Counter[str]()
    for name, parameter in model.module.named_parameters():
        found[part_of(name, model.row)] += parameter.numel()
    return dict(found)


def _groups(model: "LoadedModel", device: Device | None) -> dict[str, int]:
    """Number of trained parameters by group: the device's groups, or all with the usual rank."""
    usual = InitSettings()
    names, rank = usual.groups, usual.lora_rank
    if device is not None:
        names, rank = device.settings.groups, device.settings.lora.rank
    known = model.trainable_groups()
    return {
        group: sum(overlay.num_parameters(model.module, group, name, rank) for name in known[group])
        for group in split_groups(names)
    }


def _takes(model: "LoadedModel", device: Device | None) -> list[takes.Takes]:
    """Which runtime takes which of the device's groups, or of the usual ones."""
    names = InitSettings().groups if device is None else device.settings.groups
    linears = model.trainable_groups()["lora.connector"]
    language = model.module.config.get_text_config().model_type
    return takes.takes(model.row, language, names, linears)


def _payload_bytes(model: "LoadedModel", seen: "Seen", photograph: "Image") -> dict[str, int]:
    """Bytes of the whole frame: all of its tokens, and the picture sent in place of them."""
    count, channels = seen.tokens.shape
    found = {"int8": count * channels + 4 * count, "float16": 2 * count * channels}
    picture = model.seen_as_picture(photograph)
    for media in pictures.CODED:
        if pictures.can_encode(media):
            found[media.removeprefix("image/")] = len(pictures.encode(picture, media).data)
    return found


def _exceptions(model: "LoadedModel") -> Iterator[str]:
    if not model.num_blocks:
        yield "no vision blocks: tokens cannot be ranked by their variance"
    if identities.is_recurrent(model):
        yield identities.EXPLAINED
    if experts := overlay.fused_experts(model.module):
        yield f"{experts} get no LoRA"


def _identities(
    found: Outlined, digest: str | None, sizes: memory.Sizes, on: Runtime
) -> dict[str, Any]:
    """What was tried on the loaded model, or why nothing was."""
    if found.tensors is None:
        return {"tried": [], "why_not": "the checkpoint has no weights here"}
    if not found.is_here:
        return {"tried": [], "why_not": "its weights are on the hub: download them first"}
    form = _form(found.device, on)
    needed, free = int(sizes.to_infer(form) * _SPARE), _free(on)
    if needed > free:
        needs = f"loading it in {form} needs about {machine.in_units(needed)}"
        cure = "try bfloat16, " if form == "float32" else ""
        return {
            "tried": [],
            "why_not": f"{needs}, {machine.in_units(free)} is free: {cure}or a larger machine",
        }
    if found.device is None:
        model = models.load(found.model.checkpoint, compute=on.compute, dtype=on.dtype)
    else:
        model = models.load_device(found.device, compute=on.compute, dtype=on.dtype)
    same = identities.Identity("tower by its bytes = loaded", float(digest != model.tower_digest))
    return {
        "tried": [one.as_json() for one in (same, *identities.tried(model))],
        "in": str(model.dtype).removeprefix("torch."),
        "why_not": None,
    }


def _form(device: Device | None, on: Runtime) -> str:
    """The format that the language model is loaded in."""
    if device is not None and device.settings.quantize != "none":
        return device.settings.quantize
    if on.dtype != "auto":
        return "bfloat16" if on.dtype == "float16" else on.dtype
    return "bfloat16" if _is_on_cuda(on) else "float32"


def _is_on_cuda(on: Runtime) -> bool:
    return on.compute in ("auto", "cuda") and bool(machine.cuda_devices())


def _free(on: Runtime) -> int:
    if _is_on_cuda(on):
        return machine.cuda_devices()[0][1]
    return machine.main_memory().free
