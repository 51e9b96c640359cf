"""Files: tensors as safetensors, everything else as JSON in their header. Nothing is ever unpickled; a save is all or nothing."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ._version import __version__
from .errors import CheckpointError, InputError
from .plan import Plan
from .target import Target

FORMAT_VERSION = 2  # 1: the explanation network also saw likeness to where the class speaks
_KEY = "captum_attnkd"
_DRAFT = ".part"


def write(path: str | os.PathLike[str], kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a file in one step: whatever happens, `path` holds either the old content or the new.

    Args:
        path: of the file.
        kind: what it holds, checked when reading.
        tensors: by name.
        about: JSON-able metadata.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the old file is left as it was.
    """
    place = writable(path)
    described = {"kind": kind, "format": FORMAT_VERSION, "version": __version__, **about}
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {_KEY: json.dumps({**described, "digest": _digest(described, flat)})}  # one key: their order is not kept
    with replacing(place) as draft:
        try:
            save_file(flat, draft, metadata=header)
        except SafetensorError as error:
            raise OSError(f"{place} could not be written: {error}") from error


@contextlib.contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """A draft to write to, which takes the place of the file at the end; after an error the file is as it was.

    Raises:
        OSError: it cannot be written, or the name is that of a device, a pipe or a folder, which a file must not replace.
    """
    place = Path(os.path.realpath(place))  # a link stays a link; what it points to is replaced
    _refuse_other_than_file(place)
    handle, draft = tempfile.mkstemp(prefix=_draft_prefix(place), suffix=_DRAFT, dir=place.parent)
    os.close(handle)
    try:
        yield Path(draft)
        with open(draft, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(draft, 0o666 & ~_umask())
        os.replace(draft, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def clear_drafts(place: Path) -> None:
    """Remove what writers of a file left that were killed; for files that only one process at a time writes."""
    place = Path(os.path.realpath(place))
    for draft in place.parent.glob(f"{glob.escape(_draft_prefix(place))}{'?' * 8}{_DRAFT}"):
        with contextlib.suppress(OSError):
            draft.unlink()


def _draft_prefix(place: Path) -> str:
    """How drafts of a file are called; a name may have 255 bytes, and a draft's is longer."""
    name = os.fsencode(place.name)
    return f".{place.name if len(name) < 240 else hashlib.blake2b(name, digest_size=16).hexdigest()}."


def read(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, foreign, of another kind, or written by another version.
    """
    place = place_of(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no file {place}")
    try:
        with safe_open(place, framework="pt", device="cpu") as opened:
            header = (opened.metadata() or {}).get(_KEY)
            # Copied: what is read is a map of the file, and would follow what is later done to it.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - not a mapping
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        MemoryError,
        OverflowError,
    ) as error:
        raise CheckpointError(
            f"{place} is damaged or not a safetensors file: {error}; copy it again, or delete it and begin anew"
        ) from error
    if header is None:
        raise CheckpointError(f"{place} is a safetensors file, but not one of captum_attnkd")
    try:
        about = json.loads(header)
        found, version, written = about["kind"], int(about["format"]), about.pop("digest", None)
        digest = _digest(about, tensors)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{place}: its metadata cannot be read: {error}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{place} was written by captum_attnkd {about.get('version')} in format {version}; this is {__version__}, which reads "
            f"up to format {FORMAT_VERSION}: upgrade captum_attnkd"
        )
    if found != kind:
        raise CheckpointError(f"{place} holds a {found!r}, not a {kind!r}")
    if written != digest:
        raise CheckpointError(
            f"{place} is damaged: its content is not what was written; copy it again, or delete it and begin anew"
        )
    if version < FORMAT_VERSION:
        raise CheckpointError(
            f"{place} is of an earlier captum_attnkd, in format {version}, whose networks were others: fit and save anew"
        )
    return tensors, about


def _digest(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of metadata and tensors: a flipped bit in a weight gives a sound file and wrong maps."""
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(errors="replace"))
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def place_of(path: Any) -> Path:
    """The path as one.

    Raises:
        InputError: it is none, or no file can have such a name.
    """
    try:
        place = Path(path)
        os.fsencode(place)  # a lone surrogate cannot be written
    except (TypeError, ValueError) as error:
        raise InputError(f"a path must be a str or os.PathLike, got {path!r}: {error}") from error
    if "\0" in str(place):
        raise InputError(f"a path cannot hold a null byte: {path!r}")
    return place


def writable(path: Any) -> Path:
    """The path as one to which a file can be written, as far as that shows beforehand: long work asks first.

    Raises:
        InputError: it is no path.
        OSError: its folder is not there, or it is that of something which a file must not replace.
    """
    place = place_of(path)
    if str(path).endswith("/"):
        raise InputError(f"{path} names a folder; name a file in it")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {place.parent}")
    _refuse_other_than_file(Path(os.path.realpath(place)))
    return place


def _refuse_other_than_file(place: Path) -> None:
    if place.is_symlink() or (place.exists() and not place.is_file()):  # a link still is one that leads nowhere
        raise OSError(f"{place} is there already and is not a file")


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put tensors into a module; every one must be there, fit, be finite, and none may be left over.

    Raises:
        CheckpointError: naming the first that does not; the module is then unchanged.
    """
    check_weights(module, tensors, where)
    module.load_state_dict(dict(tensors))


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are not exactly a module's: every one must be there, fit, be finite, and none be left over.

    Raises:
        CheckpointError: naming the first that does not.
    """
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise CheckpointError(f"{where}: the tensor {name!r} is missing")
        given = tensors[name]
        if given.shape != tensor.shape or given.dtype != tensor.dtype:
            raise CheckpointError(
                f"{where}: the tensor {name!r} is {tuple(given.shape)} {given.dtype}, expected {tuple(tensor.shape)} {tensor.dtype}"
            )
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            raise CheckpointError(f"{where}: the tensor {name!r} holds NaN or infinite values")
    extra = sorted(set(tensors) - set(own))
    if extra:
        raise CheckpointError(f"{where}: the tensor {extra[0]!r} is not one of this surrogate's")


def check_fit(
    plan: Plan, target: Target, backbone: nn.Module | None, tensors: Mapping[str, Tensor], where: str
) -> None:
    """Refuse metadata that does not fit the tensors before any network of its sizes is built.

    Raises:
        CheckpointError: saying what does not fit.
    """
    voices = tensors.get("student.voices")
    if voices is None or voices.ndim != 1 or not 1 <= len(voices) <= 64:
        raise CheckpointError(f"{where}: the tensor 'student.voices' is missing or out of shape")
    if plan.levels and len(plan.levels) != len(voices):
        raise CheckpointError(f"{where}: {len(voices)} levels of weights for {len(plan.levels)} levels of metadata")
    try:
        with torch.device("meta"):  # sizes without memory
            outline = plan.build(target, backbone)
    except Exception:  # what cannot be outlined (some of torchvision's networks) must be built to be compared
        return
    check_weights(outline, tensors, where)


def check_answer(answer: Tensor, probe: Tensor, where: str, name: str) -> None:
    """Refuse a target that answers the probe otherwise than the one a surrogate was fitted to.

    Raises:
        CheckpointError: the answers (2, K), log-probabilities, differ by more than precision explains.
    """
    if not same_answer(answer, probe):
        raise CheckpointError(
            f"{where} was fitted to another model than this {name} (other weights, or other classes): it answers two fixed images "
            "differently; load it on its own model, or fit again (check_target=False to insist)"
        )


def same_answer(answer: Tensor, probe: Tensor) -> bool:
    """Whether answers (2, K), log-probabilities, differ by no more than precision, kernels and threads explain."""
    return answer.shape == probe.shape and torch.allclose(answer.float(), probe.float(), rtol=0.05, atol=0.05)


def architecture(target: Target) -> list[str]:
    """Names, shapes and module classes of a target, where it is a module; else nothing can be said."""
    module = target.module
    if module is None or isinstance(module, torch.jit.ScriptModule):
        return []
    shapes = [f"{name}:{tuple(p.shape)}" for name, p in module.named_parameters()]
    return [f"{name}={type(part).__name__}" for name, part in module.named_modules() if name] + shapes


def probe_images(shape: tuple[int, int, int], mean: Tensor, deviation: Tensor) -> Tensor:
    """Two fixed images (2, C, H, W) of coarse noise: a target's answer to them tells it from another of its kind."""
    generator = torch.Generator().manual_seed(20210212)
    coarse = torch.randn(2, shape[0], 4, 4, generator=generator)
    fine = 0.3 * torch.randn(2, *shape, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear", align_corners=False)
    return mean[:, None, None] + deviation[:, None, None] * (smooth + fine)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
