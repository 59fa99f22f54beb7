"""What works on this machine: libraries, hardware, memory, and what they are for.

Nothing here needs a checkpoint or the network. A check never raises: what fails is its answer.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from cdcca_cli import packages
from cdcca_cli.errors import CdccaError, Unavailable
from cdcca_cli.memory import main_memory

OK, MISSING = "ok", "missing"
LIGHT = "a light installation does without"
REQUIRED = packages.LEFT_OUT | packages.LIGHT


@dataclass(frozen=True)
class Check:
    """One thing that works here or does not. found: version or size. cure: "" if there is none."""

    name: str
    state: str
    found: str
    purpose: str
    cure: str = ""
    is_required: bool = False


def checks() -> list[Check]:
    """Everything that is looked at, in the order of the table."""
    found: list[Check] = []
    for name, look in (
        ("packages", _packages),
        ("hardware", _hardware),
        ("quantization", _quantization),
        ("pictures", _pictures),
        ("extras", _extras),
        ("disks", _room),
    ):
        try:
            found += look()
        except (ImportError, OSError) as error:  # OSError: a shared library of a package
            cure = "install what cdcca depends on again"
            found.append(Check(name, MISSING, _words(error), "every model", cure, is_required=True))
    return found


def require(found: list[Check]) -> None:
    """Raises: Unavailable if something that cdcca cannot do without is missing."""
    missing = [check for check in found if check.is_required and check.state == MISSING]
    if missing:
        names = ", ".join(check.name for check in missing)
        raise Unavailable(f"needed and missing: {names}: {missing[0].cure}")


def as_json(found: list[Check]) -> dict[str, Any]:
    memory = main_memory()
    return {
        "kind": "machine",
        "checks": [asdict(check) for check in found],
        "memory_bytes": asdict(memory),
        "cpu_threads": cpu_threads(),
        "cuda": [
            {"name": name, "free_bytes": free, "total_bytes": total}
            for name, free, total in cuda_devices()
        ],
    }


def cpu_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuda_devices() -> list[tuple[str, int, int]]:
    """Each device's name, and its memory in bytes: free and in all."""
    try:
        import torch
    except (ImportError, OSError):
        return []
    if not torch.cuda.is_available():
        return []
    return [
        (torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number))
        for number in range(torch.cuda.device_count())
    ]


def in_units(num_bytes: float) -> str:
    """`700 B`, `1.5 MB`, `23 GB`: powers of 1000, two or three digits."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while num_bytes >= 999.5 and len(units) > 1:
        num_bytes /= 1000
        units.pop(0)
    is_short = num_bytes >= 9.95 or units[0] == "B"
    return f"{num_bytes:.0f} {units[0]}" if is_short else f"{num_bytes:.1f} {units[0]}"


def _packages() -> Iterator[Check]:
    import platform

    from cdcca_cli import __version__

    yield Check("cdcca", OK, __version__, "")
    yield Check("python", OK, platform.python_version(), "")
    for name, purpose in REQUIRED.items():
        try:
            yield Check(name, OK, metadata.version(name), purpose, is_required=True)
        except metadata.PackageNotFoundError:
            is_needed = not (packages.is_light() and name in packages.LEFT_OUT)
            cure = f"pip install {name}" if is_needed else LIGHT
            yield Check(name, MISSING, "", purpose, cure, is_required=is_needed)


def _hardware() -> Iterator[Check]:
    memory = main_memory()
    found = f"{in_units(memory.free)} free of {in_units(memory.total)}"
    yield Check("memory", OK, found, "holds a model on a CPU")
    if packages.is_light():
        yield Check("CPU", OK, f"{cpu_threads()} cores", "")
        return
    import torch

    yield Check(
        "CPU", OK, f"{cpu_threads()} cores, torch uses {torch.get_num_threads()} threads", ""
    )
    purpose = "large teachers in minutes, not hours"
    for name, free, total in cuda_devices():
        yield Check("CUDA", OK, f"{name}, {in_units(free)} free of {in_units(total)}", purpose)
    if torch.cuda.is_available():
        return
    if torch.backends.mps.is_available():
        yield Check("MPS", OK, "", purpose)
        return
    has_card = shutil.which("nvidia-smi") is not None
    is_built = torch.version.cuda is not None
    cures = {
        (True, False): "this torch is built without CUDA: install one from pytorch.org",
        (True, True): f"nvidia-smi: does the driver fit CUDA {torch.version.cuda}?",
    }
    yield Check(
        "CUDA", MISSING, "", purpose, cures.get((has_card, is_built), "no NVIDIA card here")
    )


def _quantization() -> Iterator[Check]:
    """A linear of 4 bits on the hardware that models are computed on by default."""
    if packages.is_light():
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    purpose = "language models in 4 and 8 bits"
    try:
        _try_four_bits(device)
    except Exception as error:
        yield Check("4 bits", MISSING, _words(error), purpose, "pip install -U bitsandbytes")
    else:
        yield Check("4 bits", OK, f"on {device}", purpose)


def _try_four_bits(device: str) -> None:
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns when it is imported
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    weight_OI = layer.weight.data.clone()  # within 1/8, and 4 bits miss it by a seventh of that
    given_I = torch.ones(64)
    with torch.no_grad():
        made_O = layer.to(device).eval()(given_I[None].to(device))[0].cpu()
    error = float((made_O - weight_OI @ given_I).abs().max())
    if not error < 64 / 8 / 7:
        raise ArithmeticError(f"a linear of 4 bits is off by {error:.2g}")


def _pictures() -> Iterator[Check]:
    from cdcca_cli.payloads import pictures

    for media in pictures.CODED:
        is_ok = pictures.can_encode(media)
        purpose = "payload frame" + (", the fewest bytes" if media == pictures.AVIF else "")
        yield Check(
            f"Pillow with {media.removeprefix('image/')}",
            OK if is_ok else MISSING,
            "",
            purpose,
            "" if is_ok else pictures.CURE,
        )


def _extras() -> Iterator[Check]:
    yield _java()
    yield _video()
    for package, purpose, named in (
        ("matplotlib", "plots of eval and compress", "'cdcca[plot]'"),
        ("torchvision", "families without an image processor for PIL", "'cdcca[families]'"),
        ("timm", "families with a tower of timm's, such as FastVLM", "'cdcca[families]'"),
    ):
        try:
            import_module(package)  # torchvision of another torch is found, and fails here
            yield Check(package, OK, metadata.version(package), purpose)
        except ImportError:
            yield Check(package, MISSING, "", purpose, f"pip install {named}")
        except Exception as error:
            cure = f"install the {package} of this torch"
            yield Check(package, MISSING, _words(error), purpose, cure)


def _java() -> Check:
    from cdcca_cli.scoring.captions import java

    purpose = "METEOR, SPICE (Java 8), the java tokenizer"
    if not java.has_java():
        return Check("Java", MISSING, "", purpose, "install Java 8")
    try:
        version = java.version()
    except CdccaError as error:
        return Check("Java", MISSING, str(error), purpose, "install Java 8")
    cure = "" if version.startswith("1.8") else "not for SPICE, which needs Java 8"
    return Check("Java", OK, version, purpose, cure)


def _video() -> Check:
    purpose = "videos, cameras and streams"
    try:
        from cdcca_cli.datasets import video

        av = video.library("doctor")
        formats = ".".join(map(str, av.library_versions["libavformat"]))
        return Check("PyAV", OK, f"{av.__version__}, ffmpeg's libavformat {formats}", purpose)
    except CdccaError:
        return Check("PyAV", MISSING, "", purpose, "pip install 'cdcca[video]'")
    except Exception as error:
        return Check("PyAV", MISSING, _words(error), purpose, "reinstall av")


def _room() -> Iterator[Check]:
    """The disks of temporary files, and of checkpoints from the hub."""
    disks = [("disk: temporary", "training and compress", tempfile.gettempdir())]
    if not packages.is_light():
        from huggingface_hub.constants import HF_HUB_CACHE

        disks.append(("disk: checkpoints", "checkpoints from the hub", HF_HUB_CACHE))
    for name, purpose, folder in disks:
        path = Path(folder)
        while not path.exists() and path != path.parent:
            path = path.parent
        try:
            free = shutil.disk_usage(path).free
            yield Check(name, OK, f"{in_units(free)} free in {folder}", purpose)
        except OSError as error:
            yield Check(name, MISSING, str(error.strerror), purpose, f"make {folder} readable")


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
