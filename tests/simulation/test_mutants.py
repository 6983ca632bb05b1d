"""A simulation that finds nothing proves something only if it finds what is there."""

import pytest
from mutants import MUTANTS, Mutant

from keepstep.testing.simulation.plan import draw_plan

_SEEDS = 100
_SEEDS_FOR_LONG = 1500


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_protocol_is_caught(mutant: Mutant) -> None:
    assert is_caught(mutant, range(mutant.first_seed, mutant.first_seed + _SEEDS))


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_protocol_is_caught_by_whatever_seeds(mutant: Mutant) -> None:
    assert is_caught(mutant, range(1_000_000, 1_000_000 + _SEEDS_FOR_LONG))


def is_caught(mutant: Mutant, seeds: range) -> bool:
    return any(mutant.run(draw_plan(seed)) is not None for seed in seeds)
