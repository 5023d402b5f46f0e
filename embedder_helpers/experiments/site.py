"""What the workers of a cluster do next: the work of those that share a folder of hidden states.

Nothing here knows of Ray, processes or files.
"""

import logging
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from embedder_helpers.experiments.plan import NO_TIME, Outcome, Plan, Status

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 5  # at a piece of work at which processes die


class Job(NamedTuple):
    """A piece of a site's work.

    Attributes:
        method: of `RemoteExecutor`.
        batch: number of the batch; None for `batches`.
        argument: rows of a shard, or name of an experiment.
        model: number of the compiled model that an experiment trains.
        attempts: that have failed because a process died.
    """

    method: str
    batch: int | None = None
    argument: Any = None
    model: int | None = None
    attempts: int = 0

    @property
    def arguments(self) -> list[Any]:
        """What the method gets besides the site."""
        return [value for value in (self.batch, self.argument) if value is not None]


class Site:
    """The work of actors that share a folder of hidden states, and what of it comes next.

    It has stages, of which each begins when the one before has ended: to plan; then for each batch
    to make room for hidden states, to compute their shards, and to run the experiments that read
    them. Experiments that read none fill the gaps.

    Args:
        names: of the experiments.
        todo: names of those to run.
        capacity: bytes of hidden states that fit the folder.

    Attributes:
        key: what an actor needs to know of the site.
        outcomes: of the experiments that ended, by name.
    """

    def __init__(self, names: Sequence[str], todo: Sequence[str], capacity: float):
        self.key = tuple(names), tuple(todo), capacity
        self.outcomes: dict[str, Outcome] = {}
        self._stage, self._later = [Job("batches")], deque[list[Job]]()
        self._fillers: list[Job] = []
        self._filled: set[int] = set()  # batches that read no hidden states
        self._running = 0  # jobs of the stage

    @property
    def unfinished(self) -> list[str]:
        """The names of the experiments that have not ended."""
        return [name for name in self.key[1] if name not in self.outcomes]

    def is_finished(self) -> bool:
        """Whether all experiments have ended."""
        return len(self.outcomes) == len(self.key[1])

    def next_job(self, model: int | None) -> Job | None:
        """What an actor should do, if possible with the model it has; None: nothing for now."""
        while not self._stage and not self._running and self._later:
            self._stage = self._later.popleft()
        if self._stage:
            self._running += 1
            return _take(self._stage, model)
        return _take(self._fillers, model) if self._fillers else None

    def end(self, job: Job, answer: Any) -> None:
        """Take an actor's answer to a job."""
        self._running -= not self._is_filler(job)
        if job.method == "batches":
            for number, (reads_states, experiments) in enumerate(answer):
                jobs = [Job("run", number, name, model) for name, model in experiments]
                if reads_states:
                    self._later += [[Job("prepare", number)], jobs]
                else:
                    self._fillers += jobs
            self._filled = {job.batch for job in self._fillers}
        elif job.method == "prepare" and answer is None:
            skipped = self._later.popleft()
            self.outcomes |= {job.argument: NO_TIME for job in skipped}
        elif job.method == "prepare":
            self._later.appendleft([Job("compute_shard", job.batch, shard) for shard in answer])
        elif job.method == "run":
            self.outcomes[job.argument] = answer

    def fail(self, job: Job, reason: str) -> None:
        """Note that a job failed; experiments that lack hidden states report why themselves."""
        if job.method == "run":
            self.end(job, Outcome(Status.FAILED, reason))
        elif job.method == "batches":
            self.outcomes |= dict.fromkeys(self.unfinished, Outcome(Status.FAILED, reason))
            self.end(job, [])
        else:
            logger.warning("computing hidden states ended early: %s", reason)
            self.end(job, [] if job.method == "prepare" else None)

    def try_again(self, job: Job, was_begun: bool = True) -> None:
        """Note that a process died at a job, or before, which another one will try."""
        if job.attempts + was_begun == MAX_ATTEMPTS:
            self.fail(job, f"a process died at it {MAX_ATTEMPTS} times, perhaps for lack of memory")
            return
        again = job._replace(attempts=job.attempts + was_begun)
        if self._is_filler(job):
            self._fillers.append(again)
        else:
            self._running -= 1
            self._stage.append(again)

    def hand_over(self) -> "Site":
        """A site for other workers with what has not ended, which this one has no more to do."""
        names, _, capacity = self.key
        rest = Site(names, self.unfinished, capacity)
        self.key = names, tuple(self.outcomes), capacity
        return rest

    def _is_filler(self, job: Job) -> bool:
        return job.method == "run" and job.batch in self._filled


def _take(jobs: list[Job], model: int | None) -> Job:
    """Remove a job: of the same model if there is one, else of the one with the most jobs."""
    counts = Counter(job.model for job in jobs)
    wanted = model if model in counts else counts.most_common(1)[0][0]
    return jobs.pop(next(i for i, job in enumerate(jobs) if job.model == wanted))


def divide(plans: Sequence[Plan], sizes: Sequence[int]) -> list[list[Plan]]:
    """Divide plans among folders of hidden states, a task's together where there are enough tasks.

    Args:
        plans: to divide.
        sizes: number of workers of each folder.
    """
    tasks: dict[str, list[Plan]] = {}
    free = []  # to run anywhere
    for plan in plans:
        if "llm_preset" in plan.presets:
            tasks.setdefault(plan.inputs["task"], []).append(plan)
        else:
            free.append([plan])
    groups = sorted(tasks.values(), key=len, reverse=True)
    while groups and len(groups) < len(sizes) and len(groups[0]) > 1:
        half = len(groups[0]) // 2  # the texts of both halves pass Gemma twice
        groups = sorted([groups[0][:half], groups[0][half:], *groups[1:]], key=len, reverse=True)
    parts: list[list[Plan]] = [[] for _ in sizes]
    for group in groups + free:
        loads = [len(part) / size for part, size in zip(parts, sizes, strict=True)]
        parts[loads.index(min(loads))] += group
    return parts
