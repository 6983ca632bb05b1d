"""The catalog of drills is complete and consistent."""

from pkgutil import resolve_name

import pytest

from keepstep.config import resolve
from keepstep.drills.catalog import SMOKE, catalog, select
from keepstep.drills.judges import JUDGES
from keepstep.drills.node_acts import Assemble, Befall, Deed, Join
from keepstep.drills.requirements import lacking
from keepstep.drills.rivals import AtOnce, Rivals
from keepstep.drills.scenario import (
    SETTINGS,
    SMALL,
    DamageKind,
    Drill,
    Ending,
    Leg,
    Place,
    Scale,
    Spoil,
)
from keepstep.drills.soak.drill import soak
from keepstep.drills.storage_acts import Distort, Distortion, Happen, Mishap
from keepstep.drills.verdicts import INVARIANTS
from keepstep.errors import ConfigError
from keepstep.failpoints import FAILPOINTS, arm, disarm
from keepstep.phases import Phase

NAMES = {drill.name for drill in catalog()}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("site", FAILPOINTS)
def test_a_rank_dies_at_every_crash_site(site: str, strategy: str) -> None:
    assert f"kill-{site}-{strategy}" in NAMES


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_covered(phase: Phase) -> None:
    assert select((f"kill-{phase}.*",))


def test_names_are_unique() -> None:
    assert len(NAMES) == len(catalog())


def test_every_drill_belongs_to_a_family_of_the_list() -> None:
    assert {drill.family for drill in catalog()} <= {f"D{number}" for number in range(1, 19)}


def test_every_judge_speaks_for_a_promise() -> None:
    assert {invariant for invariant, _ in JUDGES.values()} <= set(INVARIANTS)


@pytest.mark.parametrize("drill", catalog(), ids=lambda drill: drill.name)
def test_every_need_is_known_and_every_player_is_there(drill: Drill) -> None:
    lacking(drill.needs)
    for act in drill.acts:
        assert callable(resolve_name(act.player))


def test_every_judge_is_needed_and_known() -> None:
    drills = (*catalog(), soak(minutes=1, faults=1))
    assert {name for drill in drills for name in drill.judges} == set(JUDGES)


@pytest.mark.parametrize("drill", catalog(), ids=lambda drill: drill.name)
def test_settings_and_failpoints_are_sound(drill: Drill) -> None:
    settings = {**SETTINGS, **dict(drill.settings)}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    resolve(files=[], environ={}, arguments=words)
    legs = [act for act in drill.acts if isinstance(act, Leg)]
    for leg in legs:
        assert ("kill" in leg.failpoints) == (leg.ending is Ending.KILLED or leg.max_restarts > 0)
    for failpoints in (leg.failpoints for leg in (*legs, *others_with_failpoints(drill))):
        try:
            arm(failpoints, rank=0, restart_count=0)
        finally:
            disarm()


def others_with_failpoints(drill: Drill) -> list[Assemble | Join | Leg]:
    """Whatever starts ranks in a drill, but does not end with them."""
    return [
        *(act for act in drill.acts if isinstance(act, Assemble | Join)),
        *(leg for act in drill.acts if isinstance(act, Rivals) for leg in (act.older, act.newer)),
        *(act.leg for act in drill.acts if isinstance(act, AtOnce)),
    ]


@pytest.mark.parametrize("drill", catalog(), ids=lambda drill: drill.name)
def test_every_drill_starts_a_job(drill: Drill) -> None:
    assert [act for act in drill.acts if isinstance(act, Leg)] or others_with_failpoints(drill)


def test_a_save_is_due_when_a_rank_is_killed() -> None:
    for scale in (SMALL, Scale(8, 2), Scale(100, 30), Scale(9, 4)):
        assert scale.kill_step % scale.save_every == 0
        assert 0 < scale.kill_step < scale.steps


def test_every_deed_is_done_in_some_drill() -> None:
    assert {act.deed for d in catalog() for act in d.acts if isinstance(act, Befall)} == set(Deed)


def test_every_mishap_and_every_distortion_is_in_some_drill() -> None:
    acts = [act for drill in catalog() for act in drill.acts]
    assert {act.mishap for act in acts if isinstance(act, Happen)} == set(Mishap)
    assert {act.distortion for act in acts if isinstance(act, Distort)} == set(Distortion)


def test_drills_on_nodes_share_one_uninterrupted_run() -> None:
    on_nodes = [d for d in catalog() if any(isinstance(act, Assemble) for act in d.acts)]
    assert {(d.strategy, d.settings) for d in on_nodes} == {("ddp", ())}


def test_rescaling_resumes_four_times_in_five_worlds() -> None:
    for drill in select(("rescale-ddp", "rescale-fsdp")):
        worlds = [act.world_size for act in drill.acts if isinstance(act, Leg)]
        assert worlds == [4, 2, 3, 1, 5]


def test_rescaled_runs_are_compared_bit_for_bit_in_exact_mode() -> None:
    for drill in select(("rescale-*",)):
        is_fast = dict(drill.settings).get("train.numerics") == "fast"
        assert ("same_bits" in drill.judges) is not is_fast
        assert ("close_losses" in drill.judges) is is_fast


def test_damage_covers_every_kind_at_every_place() -> None:
    spoils = [act for d in catalog() for act in d.acts if isinstance(act, Spoil)]
    found = {(spoil.kind, place) for spoil in spoils for place in spoil.places}
    assert found == {(kind, place) for kind in DamageKind for place in Place}


def test_one_checkpoint_stays_whole_unless_all_are_damaged() -> None:
    for drill in select(("damage-*",)):
        (spoil,) = (act for act in drill.acts if isinstance(act, Spoil))
        assert (len(spoil.places) == SMALL.num_checkpoints) == (drill.name == "damage-all")


@pytest.mark.parametrize(("scale", "count"), [(SMALL, 8), (Scale(9, 2), 5), (Scale(100, 30), 4)])
def test_all_means_the_checkpoint_at_the_end_as_well(scale: Scale, count: int) -> None:
    (drill,) = select(("damage-all",), scale)
    assert len(drill.acts[0].places) == count


def test_smoke_is_the_default() -> None:
    assert {drill.name for drill in select(())} == set(SMOKE)


def test_wildcards_and_all_select() -> None:
    assert {d.name for d in select(("kill-write.*-ddp", "zombie"))} == {
        "kill-write.before-ddp",
        "kill-write.middle-ddp",
        "kill-write.after-ddp",
        "kill-write.middle-sync-ddp",
        "kill-write.middle-fast-ddp",
        "zombie",
    }
    assert select(("all",)) == catalog()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="no drill is called 'nope'"):
        select(("zombie", "nope"))
