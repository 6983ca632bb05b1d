"""A simulation that finds nothing proves something only if it finds what is there."""

import pytest
from mutants import MUTANTS, Mutant

from keepstep.testing.simulation.plan import draw_plan


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_protocol_is_caught(mutant: Mutant) -> None:
    caught = (mutant.run(draw_plan(seed)) is not None for seed in range(mutant.seeds))
    assert any(caught), f"{mutant.name} survives {mutant.seeds} histories"
