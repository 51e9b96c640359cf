"""Levels: the resolutions at which features are tapped from a network, found by running an example."""

from __future__ import annotations

import contextlib
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import InputError, TargetError

Layout = Literal["maps", "channels_last", "tokens"]

# Their output has the size asked of them, whatever the image's: a small image's last features come out enlarged.
_FIXED_SIZE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

# Hooks on a shared module are seen by every thread that runs it; one tapped pass at a time keeps threads apart.
_TAP_LOCK = threading.RLock()


@dataclass(frozen=True)
class Level:
    """One tapped module output.

    Attributes:
        module: the module's name inside the network.
        call: which of its calls in one forward pass (a shared ReLU is called many times).
        layout: "maps" (B, C, h, w), "channels_last" (B, h, w, C) or "tokens" (B, N, C).
        channels: C.
        size: (h, w) for an image of the fitted size.
        prefix: class and register tokens in front of the patch tokens, dropped.
    """

    module: str
    call: int
    layout: Layout
    channels: int
    size: tuple[int, int]
    prefix: int = 0

    def fold(self, output: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Bring the module's output to feature maps (B, C, h, w), float32."""
        if self.layout == "maps":
            return output.float()
        if self.layout == "channels_last":
            return output.permute(0, 3, 1, 2).float()
        patches = output[:, self.prefix :]
        grid = _token_grid(patches.shape[1], image_size)
        if grid is None:
            raise InputError(
                f"{patches.shape[1]} tokens of {self.module!r} do not form a grid for images of {image_size}"
            )
        return patches.transpose(1, 2).reshape(output.shape[0], -1, *grid).float()


class Tapped:
    """A network run with its levels tapped. Not a module: holding one neither registers nor moves the network.

    Args:
        network: whose layers are read.
        levels: what to read, finest first.
    """

    def __init__(self, network: nn.Module, levels: Sequence[Level]) -> None:
        self.network = network
        self.levels = tuple(levels)
        modules = dict(network.named_modules())
        missing = [level.module for level in levels if level.module not in modules]
        if missing:
            raise TargetError(f"the model has no module {missing[0]!r}; was the surrogate fitted to another model?")
        self._tapped = [modules[level.module] for level in self.levels]

    def __call__(self, images: Tensor, ask: Callable[[], Any] | None = None) -> tuple[list[Tensor], Any]:
        """Run the network once.

        Args:
            images: (B, C, H, W).
            ask: how the network is run, when it is not simply `network(images)` (a wrapper around it, say).

        Returns:
            The levels' features, finest first, each (B, C_l, h_l, w_l) float32; and the network's output.
        """
        outputs, answer = self.outputs(images, ask)
        return self.fold(outputs, (images.shape[-2], images.shape[-1])), answer

    def outputs(
        self, images: Tensor, ask: Callable[[], Any] | None = None, recorded_from: int | None = None
    ) -> tuple[list[Tensor], Any]:
        """The same with the levels' features in the network's layout.

        Args:
            images: (B, C, H, W).
            ask: as above.
            recorded_from: the level from which on autograd records; what comes before costs neither memory nor a way back.
        """
        calls: dict[int, list[Tensor]] = defaultdict(list)
        wanted = () if recorded_from is None else list(zip(self._tapped, self.levels, strict=True))[recorded_from:]

        def look(module: nn.Module, output: Any) -> Any:
            features, call = _first_tensor(output), len(calls[id(module)])
            if features.requires_grad or not any(module is at and call == level.call for at, level in wanted):
                calls[id(module)].append(features)
                return None
            torch.set_grad_enabled(True)
            # What the network goes on with, it may change in place.
            onward = features.detach().requires_grad_().clone()
            calls[id(module)].append(onward)
            return _with_first(output, onward)

        with contextlib.nullcontext() if recorded_from is None else torch.no_grad(), watched(self._tapped, look):
            output = self.network(images) if ask is None else ask()
        found = []
        for level, module in zip(self.levels, self._tapped, strict=True):
            if len(calls[id(module)]) <= level.call:
                raise TargetError(
                    f"the model did not run its module {level.module!r} as it did when the surrogate was fitted"
                )
            found.append(calls[id(module)][level.call])
        return found, output

    def fold(self, outputs: Sequence[Tensor], image_size: tuple[int, int]) -> list[Tensor]:
        """From what `outputs` gave, for images of `image_size`, to feature maps (B, C_l, h_l, w_l), float32."""
        return [level.fold(output, image_size) for level, output in zip(self.levels, outputs, strict=True)]


@contextlib.contextmanager
def watched(modules: Iterable[nn.Module], look: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Call `look(module, output)` whenever one of `modules` has run in this thread; no hook outlives the block.

    What it returns, if not None, takes the output's place.
    """
    owner, watching = threading.get_ident(), list(dict.fromkeys(modules))

    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        return look(module, output) if threading.get_ident() == owner else None

    with _TAP_LOCK:
        interrupted: KeyboardInterrupt | None = None
        try:
            for module in watching:
                module.register_forward_hook(hook)
            yield
        finally:
            while True:  # Ctrl-C may come at any line; taken out by what they are, no hook is forgotten
                try:
                    for module in watching:
                        for key in [key for key, found in list(module._forward_hooks.items()) if found is hook]:
                            module._forward_hooks.pop(key, None)
                    break
                except KeyboardInterrupt as error:
                    interrupted = error
            if interrupted is not None:
                raise interrupted


def find_levels(
    network: nn.Module,
    images: Tensor,
    names: Sequence[str] | None = None,
    most: int = 4,
    ask: Callable[[], Any] | None = None,
) -> list[Level]:
    """Find where to tap a network: the last output at each octave of resolution, by running an example.

    Args:
        network: a module in evaluation mode.
        images: at least two example images (B, C, H, W), so that a batch axis can be told from windows.
        names: module names to tap instead, in any order.
        most: how many levels at most; the deepest are kept.
        ask: how the network is run, when not simply `network(images)`.

    Returns:
        Levels, finest first. Where a network keeps one resolution (a vision transformer), blocks at equal depths
        stand in for the missing octaves.

    Raises:
        InputError: a name is unknown, or no spatial features are found.
    """
    firings = _fire(network, images, ask)
    if names is not None:
        return _named_levels(network, firings, names)
    image_size = (images.shape[-2], images.shape[-1])
    spatial = [
        (level, kind)
        for level, kind in firings
        if level.size[0] * level.size[1] >= 4 and not issubclass(kind, _FIXED_SIZE)
    ]
    by_octave: dict[int, Level] = {}
    for level, _ in spatial:
        octave = _octave(level, image_size)
        # The shallowest module name is the trunk; the last of a resolution in a deeper one may be half a block.
        if octave not in by_octave or _nesting(level) <= _nesting(by_octave[octave]):
            by_octave[octave] = level
    if not by_octave:
        raise InputError(
            f"no layer of {type(network).__name__} has spatial features of 2x2 or more; name them with levels=[...]"
        )
    if len(by_octave) > 1:
        by_octave.pop(0, None)  # full resolution costs much and says little beyond the pixels
    found = [by_octave[octave] for octave in sorted(by_octave)][-most:]
    if len(found) < 3:
        found = _with_intermediate_blocks(network, found, spatial)
    return found


def _fire(network: nn.Module, images: Tensor, ask: Callable[[], Any] | None) -> list[tuple[Level, type]]:
    """Every spatial module output of one pass, in the order in which the modules finished."""
    names = {id(module): name for name, module in network.named_modules() if name}
    image_size = (images.shape[-2], images.shape[-1])
    counts: dict[str, int] = defaultdict(int)
    firings: list[tuple[Level, type]] = []

    def look(module: nn.Module, output: Any) -> None:
        name = names[id(module)]
        call, counts[name] = counts[name], counts[name] + 1
        try:
            level = _read_layout(name, call, _first_tensor(output), len(images), image_size)
        except TargetError:
            return
        if level is not None:
            firings.append((level, type(module)))

    with watched((module for name, module in network.named_modules() if name), look), torch.no_grad():
        if ask is None:
            network(images)
        else:
            ask()
    return firings


def _read_layout(name: str, call: int, output: Tensor, batch: int, image_size: tuple[int, int]) -> Level | None:
    if output.shape[0] != batch:  # attention windows folded into the batch axis
        return None
    if output.ndim == 4:
        _, a, b, c = output.shape
        if _fits(b, c, image_size):
            return Level(name, call, "maps", a, (b, c))
        if _fits(a, b, image_size):
            return Level(name, call, "channels_last", c, (a, b))
    if output.ndim == 3:
        for prefix in range(6):  # patch tokens alone, a class token, registers
            grid = _token_grid(output.shape[1] - prefix, image_size)
            if grid is not None and grid[0] * grid[1] >= 4:
                return Level(name, call, "tokens", output.shape[2], grid, prefix)
    return None


def _fits(height: int, width: int, image_size: tuple[int, int]) -> bool:
    """Whether (height, width) is the image at one scale, give or take the border of unpadded convolutions."""
    rows, columns = image_size
    if not (1 <= height <= rows and 1 <= width <= columns):
        return False
    scale = math.sqrt(height * width / (rows * columns))
    return abs(height - rows * scale) <= 2 and abs(width - columns * scale) <= 2


def _token_grid(count: int, image_size: tuple[int, int]) -> tuple[int, int] | None:
    if count < 1:
        return None
    height = round(math.sqrt(count * image_size[0] / image_size[1]))
    if height < 1 or count % height:
        return None
    grid = (height, count // height)
    return grid if _fits(*grid, image_size) else None


def _octave(level: Level, image_size: tuple[int, int]) -> int:
    area = level.size[0] * level.size[1] / (image_size[0] * image_size[1])
    return round(-math.log2(area) / 2)


def _nesting(level: Level) -> int:
    return level.module.count(".")


def _with_intermediate_blocks(network: nn.Module, found: list[Level], spatial: list[tuple[Level, type]]) -> list[Level]:
    """Add blocks at a third and two thirds of the depth of the deepest level's resolution."""
    last, modules = found[-1], dict(network.named_modules())
    by_kind: dict[type, list[Level]] = defaultdict(list)
    for level, kind in spatial:
        if (level.size, level.channels, level.layout, level.prefix) == (
            last.size,
            last.channels,
            last.layout,
            last.prefix,
        ):
            by_kind[kind].append(level)
    repeated = [blocks for blocks in by_kind.values() if len({b.module for b in blocks}) >= 3]
    if not repeated:
        return found
    # A block holds all that it is made of, so the kind with the most parameters a piece is the whole block.
    blocks = max(repeated, key=lambda many: sum(p.numel() for p in modules[many[0].module].parameters()))
    extra = [blocks[len(blocks) // 3], blocks[2 * len(blocks) // 3]]
    return [*found[:-1], *extra, last]


def _named_levels(network: nn.Module, firings: list[tuple[Level, type]], names: Sequence[str]) -> list[Level]:
    known = dict(network.named_modules())
    last = {level.module: level for level, _ in firings}
    for name in names:
        if name not in known:
            raise InputError(
                f"levels: the model has no module {name!r}; its modules are listed by model.named_modules()"
            )
        if name not in last:
            raise InputError(f"levels: module {name!r} gives no spatial features for images of this size")
    order = {level.module: place for place, (level, _) in enumerate(firings)}
    return sorted((last[name] for name in dict.fromkeys(names)), key=lambda level: order[level.module])


def _first_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    raise TargetError(f"a tapped module returned {type(output).__name__}, not a tensor")


def _with_first(output: Any, tensor: Tensor) -> Any:
    """The output with another tensor in that place."""
    if isinstance(output, Tensor):
        return tensor
    return (
        output._replace(**{output._fields[0]: tensor})
        if hasattr(output, "_fields")
        else type(output)([tensor, *output[1:]])
    )
