"""The rendezvous store is lost (D4)."""

from keepstep.drills.catalog.nodes import GONE_ON, both_again, drill
from keepstep.drills.node_acts import Assemble, Befall, Deed, End, Hear, Reach, Release, hold
from keepstep.drills.scenario import Drill, Ending, Scale

_AWAY, _BACK = "store is away", "store is back"


def store(scale: Scale) -> tuple[Drill, ...]:
    """While nobody needs it, while nodes meet, and in the middle of a commit."""
    return (_away(scale), _lost_in_rendezvous(), _lost_in_commit(scale))


def _away(scale: Scale) -> Drill:
    lost, back = scale.save(1) + 1, scale.steps - scale.save_every
    return drill(
        "store-away",
        "D4",
        f"The rendezvous store is killed after step {lost}, and an empty one takes its place after "
        f"step {back}. Training goes on; nobody is restarted.",
        Assemble(failpoints=f"{hold(lost)};{hold(back)}", worlds=(2,)),
        Reach("step.after", lost),
        Befall(Deed.KILL_STORE),
        Hear("all", _AWAY),
        Release(),
        Reach("step.after", back),
        Befall(Deed.START_STORE),
        Hear("all", _BACK),
        Release(),
        End(),
        judges=("undisturbed", "trained_without_store", *GONE_ON),
    )


def _lost_in_rendezvous() -> Drill:
    return drill(
        "store-lost-rendezvous",
        "D4",
        "The store is killed for good while a node waits for another. The node ends with 75 and "
        "says what to start; once it is started, so does the job.",
        Assemble(absent=(1,), worlds=(2,)),
        Hear("node 0", "waits for round"),
        Befall(Deed.KILL_STORE),
        Hear("node 0", "start one there with `keepstep store`"),
        End((("node 0", Ending.TRANSIENT),)),
        Befall(Deed.START_STORE),
        *both_again(),
        End(),
        judges=("undisturbed", *GONE_ON),
    )


def _lost_in_commit(scale: Scale) -> Drill:
    step = scale.kill_step
    return drill(
        "store-lost-commit",
        "D4",
        f"The store is killed for good while step {step} is about to be published. That step is "
        "committed, and the job ends well without a store.",
        Assemble(failpoints=f"publish.before=stop@rank:0@step:{step}", worlds=(2,)),
        Reach("publish.before", step),
        Befall(Deed.KILL_STORE),
        Hear("all", _AWAY),
        Release(),
        End(),
        judges=("undisturbed", "trained_without_store", *GONE_ON),
    )
