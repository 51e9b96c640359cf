"""Drawn birds: classes differ where they should and nowhere else, and the masks lie on what is drawn."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from captum_attnkd.evaluation.datasets.birds import PARTS, SPECIES, VARIANTS, birds, parts_between


def test_all_classes_are_different_and_differ_in_one_or_two_parts() -> None:
    assert len(SPECIES) >= 20
    assert len({species.name for species in SPECIES}) == len(SPECIES)
    assert {len(parts_between(a, b)) for a, b in combinations(range(len(SPECIES)), 2)} == {1, 2}
    assert parts_between(3, 3) == ()
    assert {part for a, b in combinations(range(len(SPECIES)), 2) for part in parts_between(a, b)} == set(PARTS)


def test_a_set_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    one, again, other = (birds(6, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.parts, again.parts)
    assert not torch.equal(one.images, other.images)
    assert torch.equal(birds(3, seed=0).images, one.images[:3]), "a larger set begins with the smaller one"


def test_every_part_is_seen_whole_and_belongs_to_the_bird() -> None:
    data = birds(96, seed=2)
    assert data.images.shape == (96, 3, 128, 128)
    assert data.parts.shape == (96, 5, 128, 128)
    assert 0 <= float(data.images.min()) < float(data.images.max()) <= 1
    assert int(data.parts.flatten(2).sum(dim=2).min()) >= 12
    assert int(data.parts.sum(dim=1).max()) == 1, "no pixel belongs to two parts"
    assert bool((data.masks | ~data.parts.any(dim=1)).all())
    border = torch.ones(128, 128, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not bool((data.masks & border).any()), "no bird is cut off"


@pytest.mark.parametrize("part", PARTS)
def test_two_variants_of_a_part_differ_there_and_nowhere_else(part: str) -> None:
    for variant in VARIANTS[part][1:]:
        label = next(i for i, species in enumerate(SPECIES) if getattr(species, part) == variant)
        # The same seed and place in the set: the same pose, plumage and background.
        own, reference = birds(4, seed=3, labels=[label] * 4), birds(4, seed=3, labels=[0] * 4)
        changed = (own.images - reference.images).abs().amax(dim=1) > 0.1
        allowed = own.discriminative(torch.zeros(4, dtype=torch.int64)) | reference.parts[:, PARTS.index(part)]
        near = torch.nn.functional.max_pool2d(allowed[:, None].float(), 3, 1, 1)[:, 0] > 0  # edges are smooth
        assert int(changed.flatten(1).sum(dim=1).min()) >= 4, f"a {variant} {part} can be told from the reference's"
        assert not bool((changed & ~near).any()), f"a {variant} {part} changes nothing else"


def test_the_discriminative_parts_are_those_of_both_classes() -> None:
    beak, wing = (
        next(i for i, s in enumerate(SPECIES) if getattr(s, p) == v) for p, v in (("beak", "long"), ("wing", "bars"))
    )
    data = birds(2, seed=4, labels=[beak, wing])
    both = data.discriminative(torch.tensor([wing, beak]))
    assert torch.equal(both, data.parts[:, :2].any(dim=1))
    assert torch.equal(data.discriminative(torch.tensor([0, 0]))[0], data.parts[0, 0])
    with pytest.raises(ValueError, match="image 1 is its own class"):
        data.discriminative(torch.tensor([0, wing]))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        birds(1, size=16)
    with pytest.raises(ValueError, match=r"0\.\.23"):
        birds(2, labels=[0, 24])
    with pytest.raises(ValueError, match="2 class indices"):
        birds(2, labels=[0])


def test_other_sizes_show_the_same_bird() -> None:
    small, large = birds(2, seed=5, size=64), birds(2, seed=5, size=224)
    assert large.images.shape[-1] == 224
    shrunk = torch.nn.functional.adaptive_avg_pool2d(large.masks[:, None].float(), 64)[:, 0]
    together = torch.stack([shrunk.flatten(), small.masks.float().flatten()])
    assert float(torch.corrcoef(together)[0, 1]) > 0.8
