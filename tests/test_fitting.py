"""What a fit does with the images it is given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toy_task import fit_quickly, loader_of, random_net, single_squares

from captum_attnkd import AttentiveKDAttribution, CheckpointError, objectives
from captum_attnkd.images import Stream, content_hashes, survey


class Sides:
    """A model that is only a function: which side of an image is brighter, or (then mirrored images are alike) which end."""

    def __init__(self, symmetric: bool) -> None:
        self.axis = 2 if symmetric else 3
        self.seen: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += list(images.clone())
        one, other = images.chunk(2, dim=self.axis)
        return 50 * torch.stack([one.mean(dim=(1, 2, 3)), other.mean(dim=(1, 2, 3))], dim=1)


@pytest.fixture
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    """A user's own, for this process; afterwards none is left."""
    yield Accelerator(cpu=True, gradient_accumulation_steps=request.param)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class FailsLater(nn.Module):
    """A model that is gone after some passes with gradients: in the middle of a step that is made of several."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.left = net, 6

    def forward(self, images: Tensor) -> Tensor:
        self.left -= len(images) == 4
        if self.left < 0:
            raise RuntimeError("the model is gone")
        scores: Tensor = self.net(images)
        return scores


@pytest.mark.parametrize("symmetric", [True, False])
def test_images_are_mirrored_only_where_the_model_names_the_same_class(symmetric: bool) -> None:
    learned, _, _ = single_squares(48, seed=5)
    held_out, _, _ = single_squares(24, seed=6)
    target = Sides(symmetric)
    attribution = AttentiveKDAttribution(target, student="compact")
    fit_quickly(attribution, [learned], steps=8, val_loader=[held_out])

    def was_sent(images: Tensor) -> bool:
        return any(torch.equal(sent, image) for sent in target.seen for image in images)

    assert was_sent(learned), "clean images are sent as they are"
    assert was_sent(learned.flip(3)) == symmetric


@pytest.mark.parametrize("student", ["grafted", "compact", "of a function"])
def test_images_are_masked_for_a_student_of_its_own_layers_and_for_no_other(
    student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def masked(images: Tensor, *_: Any) -> Tensor:
        made.append(len(images))
        return images

    monkeypatch.setattr(objectives, "randomly_masked", masked)
    net = random_net(0)
    if student == "of a function":
        attribution = AttentiveKDAttribution(lambda images: net(images).detach())
    else:
        attribution = AttentiveKDAttribution(net, student=student)  # type: ignore[arg-type]
    fit_quickly(attribution, loader_of(40, 1))
    assert bool(made) == (student != "grafted")


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("held_out_apart", [True, False])
def test_processes_share_every_pass_and_no_image_is_lost_or_seen_twice(world: int, held_out_apart: bool) -> None:
    """41 images, 5 a batch, whatever the loader's batches are: each process takes as many, and all begin a pass together."""
    images = torch.rand(41 if held_out_apart else 46, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(TensorDataset(images), batch_size=7, shuffle=True)
    found = survey(loader, val_loader=[torch.rand(5, 3, 4, 4)] if held_out_apart else None)
    assert found.count == 41
    fitted = set(content_hashes(images)) - (set() if held_out_apart else set(content_hashes(found.held_out)))
    streams = [Stream(loader, found, 5, 7, rank=rank, world=world) for rank in range(world)]
    taken = [stream.endless() for stream in streams]
    a_pass = 41 // world // 5
    orders = []
    for number in range(9):
        codes: list[int] = []
        for _ in range(a_pass):
            batches = [next(images) for images in taken]
            assert all(len(batch) == 5 for batch in batches)
            codes += content_hashes(torch.cat(batches))
            assert {stream.passes for stream in streams} == {number}
        assert len(set(codes)) == len(codes), "none twice"
        assert set(codes) <= fitted, "none of those held out"
        assert len(fitted) - len(codes) < 6 * world, "less than a batch of each is left over"
        orders.append(codes)
    assert orders[0] != orders[1], "a loader that shuffles does so in every pass"
    assert set().union(*orders) == fitted, "what one pass leaves over comes in another"


@pytest.mark.parametrize("accelerator", [3], indirect=True)
def test_gradients_of_several_batches_make_one_step(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's own setting: each step's gradient is the mean of that of its batches, and nothing of the step before."""
    parts: list[list[Tensor]] = []
    steps: list[int] = []
    backward, step = accelerator.backward, torch.optim.AdamW.step

    def each(loss: Tensor) -> None:
        taught = [p for group in current.param_groups for p in group["params"]]
        found = torch.autograd.grad(loss, taught, retain_graph=True, allow_unused=True)
        parts.append([torch.zeros_like(p) if g is None else g for p, g in zip(taught, found, strict=True)])
        backward(loss)

    def once(self: torch.optim.AdamW, *args: Any) -> Any:
        taught = [p for group in self.param_groups for p in group["params"]]
        means = [torch.stack(each).mean(0) for each in zip(*parts, strict=True)]
        for parameter, mean in zip(taught, means, strict=True):
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(grad, mean, rtol=1e-4, atol=1e-7)
        steps.append(len(parts))
        parts.clear()
        return step(self, *args)

    made = torch.optim.AdamW.__init__

    def remembered(self: torch.optim.AdamW, *args: Any, **options: Any) -> None:
        nonlocal current
        made(self, *args, **options)
        current = self

    current: torch.optim.AdamW
    monkeypatch.setattr(accelerator, "backward", each)
    monkeypatch.setattr(torch.optim.AdamW, "step", once)
    monkeypatch.setattr(torch.optim.AdamW, "__init__", remembered)
    attribution = AttentiveKDAttribution(random_net(0))
    attribution.fit(
        loader_of(24, 1), distil_steps=2, explain_steps=2, batch_size=4, progress=False, accelerator=accelerator
    )
    assert steps == [3, 3, 3, 3]


@pytest.mark.parametrize("accelerator", [4], indirect=True)
def test_a_fit_that_fails_between_two_batches_of_a_step_leaves_the_accelerator_as_it_was(
    accelerator: Accelerator,
) -> None:
    with pytest.raises(RuntimeError, match="gone"):
        AttentiveKDAttribution(FailsLater(random_net(0)).eval()).fit(
            loader_of(24, 1), batch_size=4, progress=False, accelerator=accelerator
        )
    assert accelerator.sync_gradients


@pytest.mark.parametrize("accelerator", [2], indirect=True)
def test_a_state_is_not_gone_on_with_where_steps_are_made_of_more_batches(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"distil_steps": 1, "explain_steps": 1, "batch_size": 4, "progress": False}
    state = tmp_path / "fit.state"
    steps = accelerator.gradient_accumulation_steps
    loader, model = loader_of(24, 1), random_net(0)
    AttentiveKDAttribution(model).fit(loader, resume_from=state, **common)
    assert accelerator.gradient_accumulation_steps == steps, "a fit that joins it leaves it as it was"
    with pytest.raises(CheckpointError, match="another fit"):
        AttentiveKDAttribution(model).fit(loader, resume_from=state, accelerator=accelerator, **common)
