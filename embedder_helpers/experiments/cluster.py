"""Several GPUs or machines, on Ray: a process on each, and a driver that hands out the work.

The driver plans the sweep, computes nothing and loads no TensorFlow. An actor for every GPU, or for
so many CPUs, computes shards of hidden states and runs experiments; it keeps its models from one
experiment to the next. Actors that share a folder of hidden states are a *site*, which first
computes what its experiments read and then runs them. Result files remain the only truth, so that a
sweep can be continued by a single process, or on another cluster.
"""

import contextlib
import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError, reason_of
from embedder_helpers.experiments.plan import Outcome, Plan, Status
from embedder_helpers.experiments.remote import RemoteExecutor
from embedder_helpers.experiments.site import Job, Site, divide
from embedder_helpers.results.formats import write_text
from embedder_helpers.utils import progress, shared_folders
from embedder_helpers.utils.files import PACKAGE, writable_folder

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # after which a line says that processes have not begun
POLL_SECONDS = 1.0  # between two looks at what has ended
REST_SECONDS = 2.0  # before a process that could not be reached is asked again
LOST_SECONDS = 180.0  # after which it counts as dead
MEMORY = 100 * 2**20  # bytes of Ray's own store: rows of shards, and texts of result files


@dataclass(eq=False)
class Worker:
    """An actor, as the driver knows it.

    Attributes:
        actor: handle of the `RemoteExecutor`.
        node: id of its machine.
        name: for log lines.
        sites: what it works at, shared with those that share its folder; the first one at present.
        model: number of the compiled model that it has.
        log: answer to the last question for log lines.
        lost_since: when it was first not reached; None: it was.
        rests_until: when it can be asked again.
        failure: why it was left out.
    """

    actor: Any
    node: str
    name: str
    sites: deque[Site] = field(default_factory=deque)
    model: int | None = None
    log: Any = None
    lost_since: float | None = None
    rests_until: float = 0.0
    failure: str = ""


def run_on_cluster(
    experiments: Sequence[Experiment],
    plans: Sequence[Plan],
    todo: Sequence[Plan],
    folder: Path,
    until: float,
    address: str | None = None,
    cpus_per_worker: int | None = None,
) -> dict[str, Outcome]:
    """Run what is to do on all GPUs of a cluster, or without any on its CPUs.

    Args:
        experiments: of the sweep.
        plans: of the sweep.
        todo: those without a result.
        folder: for the results.
        until: deadline in seconds since 1970.
        address: of a Ray cluster; None: this machine.
        cpus_per_worker: CPUs of an actor on a machine without GPUs; None: all of them, unless
            another machine has GPUs.

    Returns:
        The outcomes by name.

    Raises:
        InputError: there is no such cluster, no actor can work, or embedders cannot be saved.
    """
    token = uuid.uuid4().hex[:8]
    settings = [experiment.as_dict() for experiment in experiments]
    arguments = settings, os.getcwd(), str(folder.resolve()), token, until
    with _connected(address):
        shared_folders.leave_file(folder, token)
        workers: list[Worker] = []
        try:
            workers += _start_workers(arguments, cpus_per_worker)
            able = _assign(workers, plans, todo, folder, token, until)
            return _Driver(able, folder, len(todo)).run()
        finally:
            shared_folders.remove_file(folder, token)
            _end(workers)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connected to a cluster, or to a Ray of this machine's own, which ends with the context."""
    if ray.is_initialized():
        yield
        return
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        options |= {"include_dashboard": False, "object_store_memory": MEMORY}
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path.rstrip(os.pathsep)  # of a local Ray's processes
    try:
        ray.init(address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        where = f"the Ray cluster {address}" if address else "Ray on this machine"
        raise InputError(f"{where} cannot be used: {reason_of(error)}") from None
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    try:
        yield
    finally:
        ray.shutdown()


def _start_workers(arguments: tuple, cpus_per_worker: int | None) -> list[Worker]:
    """An actor for each GPU of each node; where there is none, for so many of its CPUs.

    A machine without GPUs would keep those that have some waiting, and differ in the last bits.
    """
    remote = ray.remote(concurrency_groups={"log": 1}, max_restarts=-1)(RemoteExecutor)
    workers = []
    nodes = [node for node in ray.nodes() if node["Alive"]]
    has_gpus = any(node["Resources"].get("GPU") for node in nodes)
    for machine, node in enumerate(nodes, 1):
        resources = node["Resources"]
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        size = min(cpus_per_worker or (0 if has_gpus else cpus), cpus)
        count = gpus or (cpus // size if size else 0)
        needs = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": size}
        affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        for number in range(count):
            actor = remote.options(scheduling_strategy=affinity, **needs)
            kind = "GPU" if gpus else "worker"
            name = f"{kind} {number} of machine {machine}" if len(nodes) > 1 else f"{kind} {number}"
            threads = None if gpus or size == cpus else size
            workers.append(Worker(actor.remote(*arguments, threads), node["NodeID"], name))
    if not workers:
        raise InputError("the Ray cluster has neither a GPU nor a CPU to compute with")
    machines = {worker.node for worker in workers}
    logger.info("Ray: %d processes on %d machine(s)", len(workers), len(machines))
    return workers


def _end(workers: Sequence[Worker]) -> None:
    """End the processes, whatever they are doing."""
    closed = [worker.actor.close.remote() for worker in workers if worker.lost_since is None]
    ray.wait(closed, num_returns=len(closed), timeout=POLL_SECONDS) if closed else None
    for worker in workers:
        ray.kill(worker.actor)


def _assign(
    workers: Sequence[Worker],
    plans: Sequence[Plan],
    todo: Sequence[Plan],
    folder: Path,
    token: str,
    until: float,
) -> list[Worker]:
    """Divide the experiments among those workers that share a folder of hidden states.

    Returns:
        The workers that can work.

    Raises:
        InputError: none can; or embedders would be saved where nobody finds them.
    """
    answers = _ask(workers, until, "shares_results")
    saves = any(plan.experiment.save_embedder for plan in todo)
    if saves and not all(is_shared for _, is_shared in answers):
        raise InputError(
            f"save_embedder needs a folder of results that all machines share, which {folder} is "
            "not: set --out to one"
        )
    groups = _sharing_states([worker for worker, _ in answers], token, until)
    if not groups:
        raise InputError(f"no process of the cluster can work: {workers[0].failure}")
    parts = divide(plans, [len(group) for group, _ in groups])
    unfinished = {plan.path for plan in todo}
    for (group, capacity), part in zip(groups, parts, strict=True):
        names = [plan.path.stem for plan in part]
        names_todo = [plan.path.stem for plan in part if plan.path in unfinished]
        sites = deque([Site(names, names_todo, capacity)] if names_todo else [])
        for worker in group:
            worker.sites = sites
    return [worker for group, _ in groups for worker in group]


def _sharing_states(
    workers: Sequence[Worker], token: str, until: float
) -> list[tuple[list[Worker], float]]:
    """The workers, those together that see the same folder of hidden states, and its room."""
    rest, groups = list(workers), []
    while rest:
        first = rest[:1]
        is_left = _ask(first, until, "leave_token", token)
        sees = dict(_ask(rest if is_left else rest[1:], until, "sees_token", token))
        _ask(first, until, "remove_token", token)
        answers = _ask([worker for worker in sees if sees[worker]], until, "capacity")
        if answers:
            groups.append(([worker for worker, _ in answers], min(room for _, room in answers)))
        rest = [worker for worker in sees if not sees[worker]]
    return groups


def _ask(
    workers: Sequence[Worker], until: float, method: str, *arguments: Any
) -> list[tuple[Worker, Any]]:
    """The workers with their answers; those that give none are left out from now on."""
    asked = [getattr(worker.actor, method).remote(*arguments) for worker in workers]
    late = ray.wait(asked, num_returns=len(asked), timeout=START_SECONDS)[1] if asked else []
    if late:
        text = "waiting for %d processes: others may be using the GPUs or CPUs of the cluster"
        logger.info(text, len(late))
    answers = []
    for worker, reference in zip(workers, asked, strict=True):
        timeout = None if until == float("inf") else max(0.0, until - time.time())
        try:
            answers.append((worker, ray.get(reference, timeout=timeout)))
        except RayError as error:
            worker.failure = _reason(error)
            logger.warning("%s: others go on without it: %s", worker.name, worker.failure)
    return answers


def _reason(error: RayError) -> str:
    return reason_of(error.cause if isinstance(error, RayTaskError) else error)


class _Driver:
    """Hands out the work of all sites until nothing is left."""

    def __init__(self, workers: list[Worker], folder: Path, count: int):
        self._workers, self._folder, self._count = workers, folder, count
        self._sites = list(dict.fromkeys(site for one in workers for site in one.sites))
        # What runs, since when, by Ray's references.
        self._running: dict[Any, tuple[Worker, Site, Job, float]] = {}

    def run(self) -> dict[str, Outcome]:
        """The outcomes by name."""
        looked = 0.0
        with progress.progress_bar(self._count, "sweep", "experiment") as bar:
            while True:
                self._hand_out()
                if not self._running and not any(
                    one.sites and one.lost_since is not None for one in self._workers
                ):
                    break
                if self._running:
                    ended, _ = ray.wait(list(self._running), timeout=POLL_SECONDS)
                else:
                    ended = []
                    time.sleep(POLL_SECONDS)
                for reference in ended:
                    bar.update(self._take_answer(reference))
                if time.monotonic() > looked + POLL_SECONDS:
                    self._show_logs()
                    looked = time.monotonic()
        for _ in range(2):  # what was asked before the end, and what was logged since
            self._show_logs(POLL_SECONDS)
        lost = Outcome(Status.FAILED, "no process of the cluster was left to run it")
        outcomes = {}
        for site in self._sites:
            outcomes |= dict.fromkeys(site.key[1], lost) | site.outcomes
        return outcomes

    def _hand_out(self) -> None:
        busy = {worker for worker, *_ in self._running.values()}
        for worker in self._workers:
            while worker.sites and worker.sites[0].is_finished():
                worker.sites.popleft()
            if worker in busy or not worker.sites or time.monotonic() < worker.rests_until:
                continue
            site = worker.sites[0]
            if job := site.next_job(worker.model):
                method = getattr(worker.actor, job.method)
                reference = method.remote(site.key, *job.arguments)
                self._running[reference] = worker, site, job, time.monotonic()

    def _take_answer(self, reference: Any) -> int:
        """Take what a worker answered; returns the number of experiments that ended."""
        worker, site, job, begun = self._running.pop(reference)
        before = len(site.outcomes)
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            site.fail(job, f"{worker.name}: {_reason(error)}")
        except RayError as error:
            # A machine that died is asked in vain until Ray has noticed.
            site.try_again(job, was_begun=time.monotonic() > begun + REST_SECONDS)
            self._lose(worker, error)
        else:
            worker.lost_since = None
            if job.method == "run":
                worker.model = job.model
                answer = self._write(*answer)
            site.end(job, answer)
        return len(site.outcomes) - before

    def _write(self, outcome: tuple, texts: dict[str, str]) -> Outcome:
        """Write the files of an experiment that ran where the folder is not shared."""
        try:
            for path, text in texts.items():
                file = self._folder / path
                writable_folder(file.parent)
                write_text(file, text)
        except InputError as error:
            return Outcome(Status.FAILED, reason_of(error))
        return Outcome(*outcome)

    def _lose(self, worker: Worker, error: RayError) -> None:
        """Wait for a worker that could not be reached to be started again, or go on without it."""
        now = time.monotonic()
        if worker.lost_since is None:
            logger.warning("%s: its process ended early (%s)", worker.name, type(error).__name__)
            worker.lost_since = now
        worker.model, worker.rests_until = None, now + REST_SECONDS
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        is_dead = isinstance(error, ActorDiedError) or worker.node not in alive
        if is_dead or now > worker.lost_since + LOST_SECONDS:
            logger.warning("%s: others go on without it", worker.name)
            self._drop(worker)

    def _drop(self, worker: Worker) -> None:
        """Go on without a worker; if nobody shares its folder, others take over its experiments."""
        self._workers.remove(worker)
        if any(one.sites is worker.sites for one in self._workers) or not self._workers:
            return
        for site in worker.sites:
            if not site.unfinished:
                continue
            heir = min(self._workers, key=lambda one: sum(len(s.unfinished) for s in one.sites))
            rest = site.hand_over()
            self._sites.append(rest)
            heir.sites.append(rest)

    def _show_logs(self, seconds: float = 0.0) -> None:
        """Show the workers' log lines as far as they come in time, and ask for more."""
        end = time.monotonic() + seconds
        for worker in self._workers:
            rest = max(0.0, end - time.monotonic())
            if worker.log is not None and ray.wait([worker.log], timeout=rest)[0]:
                with contextlib.suppress(RayError):
                    for level, text in ray.get(worker.log):
                        logger.log(level, "%s: %s", worker.name, text)
                worker.log = None
            if worker.log is None:
                worker.log = worker.actor.take_log.remote()
