"""The other processes of a training on several devices: they train along, and nothing else.

The leading process (`run.py`) prepares, encodes, saves, previews and reports; here, a process waits
until the latents are there, trains its share of every step, and stops when the leader is told to.
Its own log is in ``JOB_DIR/processes/``.
"""

from contextlib import suppress
from pathlib import Path

from torch import distributed

from preprocessing.events import EventLog
from trainer.cache import EncodedCache
from trainer.checkpoint import find_checkpoint
from trainer.examples import Examples
from trainer.footage import Dataset
from trainer.job import Job, JobDir
from trainer.loop import Hooks, Stopped, Trainer, train
from trainer.model_cache import ModelCache, open_model, restore_base
from trainer.parallel import Group, NextJob, Ready
from trainer.run import fingerprint_of


def follow_jobs(group: Group) -> int:
    """Train along with the leader's jobs until it has no more; returns the exit status.

    A job that ends before it is ready is followed by the next one. An error here is raised: the
    process then ends, and `torchrun` ends the others.
    """
    models = ModelCache()
    job_dir: Path | None = None
    while True:
        message: NextJob | Ready = group.tell(None)
        match message:
            case NextJob(None):
                distributed.destroy_process_group()
                return 0
            case NextJob(job_dir):
                pass
            case Ready() as ready:
                assert job_dir is not None
                _follow(JobDir(job_dir), ready, models, group)


def _follow(directory: JobDir, ready: Ready, models: ModelCache, group: Group) -> None:
    job = directory.load()
    assert isinstance(job, Job)  # a generation has no followers: it never says that it is ready
    base = open_model(job, directory)
    dataset = Dataset(directory.root / job.dataset)
    with_audio = dataset.manifest.with_audio
    own = directory.root / "processes"
    own.mkdir(exist_ok=True)
    transformer = models.transformer(base, with_audio=with_audio, plan=ready.plan)
    with EventLog(own / f"{group.rank}.jsonl") as events:
        trainer = Trainer(
            transformer,
            job.spec,
            with_audio=with_audio,
            machine=job.machine,
            plan=ready.plan,
            group=group,
        )
        if ready.checkpoint is not None:
            found = find_checkpoint(
                ready.checkpoint, fingerprint_of(job.spec, dataset, base), warn=events.log
            )
            assert found is not None  # the leader has read it
            trainer.restore(found)
        examples = Examples(
            dataset, EncodedCache(directory.root / job.cache, base), job.spec, base.device
        )
        trainer.prepare(examples[0], events.log)
        hooks = Hooks(
            told=lambda: group.tell(None)[0],
            save_checkpoint=lambda step, wait: None,
            make_previews=lambda step: None,
            checkpoint_every=job.checkpoint_every,
            preview_steps=(),
        )
        with suppress(Stopped):
            train(trainer, examples, hooks, own / f"{group.rank}.metrics.jsonl", events)
    restore_base(transformer)
