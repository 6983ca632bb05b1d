"""A simulation that finds nothing proves something only if it finds what is there."""

import pytest
from mutants import MUTANTS, Mutant

from keepstep.testing.simulation.naming import plan_of


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_protocol_is_caught(mutant: Mutant) -> None:
    violations = []
    for seed in range(mutant.seeds):
        if (violation := mutant.run(plan_of(str(mutant.first_seed + seed)))) is not None:
            violations.append(violation)
            break
    assert violations, f"{mutant.name} survives {mutant.seeds} histories"
