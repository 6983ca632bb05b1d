"""Files of checkpoints are damaged (D12)."""

from keepstep.drills.catalog.panels import COMPARED, UNINTERRUPTED
from keepstep.drills.scenario import DamageKind, Drill, Ending, Leg, Place, Scale, Spoil

_NAMED = ("endings", "damage_is_named", "fell_back", "objects_untouched")
_SET_ASIDE = (*_NAMED, *COMPARED)


def damage(scale: Scale) -> tuple[Drill, ...]:
    """Every kind at every place; the source of a resume; all there is."""
    return (*(_damage(kind) for kind in DamageKind), _ancestor(scale), _all(scale))


def _damage(kind: DamageKind) -> Drill:
    deeds = {
        DamageKind.FLIP: "a bit is flipped",
        DamageKind.ZERO: "a block is zeroed",
        DamageKind.TRUNCATE: "the end is cut off",
        DamageKind.DELETE: "all is deleted",
    }
    places = tuple(Place)
    return Drill(
        name=f"damage-{kind}",
        family="D12",
        description=f"In the {len(places)} newest checkpoints {deeds[kind]}: of a shard, an index, "
        "a manifest, the stock metadata. Each is named and set aside; all ranks fall back to the "
        "same older one.",
        strategy="ddp",
        acts=(Spoil(kind, places), Leg(2)),
        judges=_SET_ASIDE,
        continues_reference=True,
    )


def _ancestor(scale: Scale) -> Drill:
    before = scale.kill_step - max(1, scale.save_every // 2)
    return Drill(
        name="damage-ancestor",
        family="D12",
        description="A job dies, its successor dies before its first save, and the manifest that "
        "the successor resumed from is deleted. It is missed, named and set aside.",
        strategy="ddp",
        acts=(
            Leg(2, f"write.middle=kill@rank:1@step:{scale.kill_step}", ending=Ending.KILLED),
            Leg(2, f"step.after=kill@rank:1@step:{before}", ending=Ending.KILLED),
            Spoil(DamageKind.DELETE, (Place.MANIFEST,)),
            Leg(2),
        ),
        # What the successor resumed from is gone: the uninterrupted run has the like of it.
        judges=(*_NAMED, "restored_exactly_where_known", *UNINTERRUPTED),
    )


def _all(scale: Scale) -> Drill:
    refused = Leg(2, ending=Ending.DAMAGED)
    return Drill(
        name="damage-all",
        family="D12",
        description="Every checkpoint is damaged. The job refuses to start, twice, and replaces "
        "nothing.",
        strategy="ddp",
        acts=(Spoil(DamageKind.FLIP, (Place.SHARD,) * scale.num_checkpoints), refused, refused),
        judges=("endings", "damage_is_named", "objects_untouched", "nothing_added"),
        continues_reference=True,
    )
