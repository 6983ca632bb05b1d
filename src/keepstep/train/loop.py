"""The training loop: one story from a configuration to a trained model, told in the public API.

The global batch, its order and its cut into microbatches depend on nothing but the configuration;
ranks only share the work. So a run goes on after a restart on any number of ranks, in exact mode
with the same bits.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from keepstep import failpoints
from keepstep.config import Config
from keepstep.data.sampler import GlobalSampler, Slot
from keepstep.session.results import Restored
from keepstep.session.session import Session
from keepstep.state.early_stopping import EarlyStopping
from keepstep.train.evaluation import evaluate, global_mean
from keepstep.train.numerics import pinned_kernels, plan_numerics
from keepstep.train.parallel import parallelize, plan_layout
from keepstep.train.report import Report, Summary
from keepstep.train.sabotage import sabotage
from keepstep.train.seeds import rank_seed, seed_all
from keepstep.train.spikes import SpikeGuard
from keepstep.train.tasks import Task
from keepstep.train.trainer import Trainer

logger = logging.getLogger(__name__)


def train(session: Session, task: Task, config: Config, device: torch.device) -> Summary:
    """Train ``task`` from where ``session`` stands to ``config.train.steps``.

    *Ranks:* collective.
    """
    numerics = plan_numerics(config, plan_layout(config.parallel, session.world, device), device)
    logger.log(logging.WARNING if numerics.caveats else logging.INFO, "%s", numerics)
    with pinned_kernels(numerics):
        return _train(session, task, config, device, is_exact=numerics.is_exact)


def _train(
    session: Session, task: Task, config: Config, device: torch.device, *, is_exact: bool
) -> Summary:
    world, batch = session.world, config.batch
    sampler = GlobalSampler(task.num_samples, batch.global_size, batch.microbatch, config.seed)
    sampler.check_world(world)

    seed_all(config.seed)  # every rank of every world builds the same weights
    model = task.make_model()
    parallel = parallelize(
        model,
        task.blocks(model),
        plan_layout(config.parallel, world, device),
        config=config.parallel,
        precision=config.train.precision,
        device=device,
        is_exact=is_exact,
    )
    trainer = Trainer(parallel, task, config.optim, num_slots=sampler.num_slots, seed=config.seed)
    if not is_exact:
        seed_all(rank_seed(config.seed, world.rank))  # from here on, dropout differs between ranks

    session.track(**trainer.state())
    guard = SpikeGuard(config.train.spike_factor) if config.train.spike_factor else None
    if guard is not None:
        session.track(spikes=guard)
    early = None
    if config.train.early_stop_patience:
        early = EarlyStopping("val_loss:min", patience=config.train.early_stop_patience)
        session.track(early=early)
    restored = session.restore()
    trainer.configure()
    _look_back(session, restored, trainer, task, config)

    report = Report(session, tokens_per_step=batch.global_size * task.tokens_per_sample)
    while session.step < config.train.steps and not (early and early.is_over):
        session.skip_marked()
        slots = sampler.slots(session.samples, world)
        losses = trainer.accumulate(slots, step=session.step)
        if config.train.log_samples:
            _record_samples(session, slots, losses)
        with session.guard():
            update = trainer.update()

        step = session.step + 1
        is_last = step == config.train.steps
        metrics: dict[str, float] = {}
        if guard or is_last or report.is_first or step % config.train.log_every == 0:
            metrics["loss"] = global_mean(losses, sampler.num_slots, device)
        every = config.train.evaluate_every
        if every and (is_last or step % every == 0):
            with session.phase("eval"):
                val_loss = evaluate(
                    parallel,
                    task,
                    world,
                    num_samples=config.data.validation_samples,
                    stop_is_due=session.stop_is_due,
                )
            metrics |= {} if val_loss is None else {"val_loss": val_loss}
        if guard and (reason := guard.explain(metrics["loss"])):
            end = session.samples + batch.global_size
            start = end - (1 + config.train.spike_steps) * batch.global_size
            session.leave_out(start, end, reason=reason)
        if early and "val_loss" in metrics:
            early.observe(metrics["val_loss"], step=step)
        stop = session.tick(samples=batch.global_size, tokens=report.tokens_per_step, **metrics)
        report.after_step(metrics, update, epoch=sampler.epoch(session.samples))
        if stop:
            break
        if early and early.best_step == session.step:
            session.save(tags=("best",))
        if early and early.is_over:
            best = session.load_best("val_loss:min", only=["model"])
            logger.info("val_loss gets no better: the weights are those of %s again", best)
            session.save(tags=("stopped-early",))
    return report.summary()


def _look_back(
    session: Session, restored: Restored, trainer: Trainer, task: Task, config: Config
) -> None:
    """Where drills interfere with what was restored, and see whether it was."""
    if restored.checkpoint is not None:
        spoil = partial(
            sabotage, session=session, state=trainer.state(), make_model=task.make_model
        )
        failpoints.hit("load.after", step=session.step, spoil=spoil)
    if config.train.log_state:
        session.record_state()


def _record_samples(session: Session, slots: Sequence[Slot], losses: Mapping[int, Tensor]) -> None:
    """Note in the ledger what this rank consumes for the step in progress, and what came of it.

    Ranks own contiguous slots: one rank after the other, the losses are in the order of slots.
    """
    session.record(
        "samples",
        step=session.step + 1,
        ids=[int(id) for slot in slots if not slot.is_padding for id in slot.ids],
        losses_hex=[float(loss).hex() for loss in losses.values()],
    )
