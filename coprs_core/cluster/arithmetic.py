"""How long a million photos take, what they cost, and what is full first: a simulation.

    python -m coprs_core.cluster.arithmetic --photos 1000000 --engines 64 --rate 10

Every engine takes batches: it fetches their photos over the network that all share, answers them,
and writes to the disk that all share; an engine that dies repeats its batch after a restart. One
step of the simulation is one batch; what is shared is given out in the order in which it is asked
for.
"""

import heapq
import random
from argparse import ArgumentParser
from dataclasses import asdict, dataclass, fields, replace

RESOURCES = ("engines", "network", "disk")


@dataclass(frozen=True)
class Job:
    """A job and the machines that it runs on.

    Attributes:
        photos: how many; `batch`: how many are answered together.
        engines: how many run at once; `rate`: photos a second of each, measured.
        photo_mb: megabytes that are read of a photo; `answer_mb`: that are written.
        network_mb, disk_mb: megabytes a second that all engines share.
        failures: of an engine, an hour; `restart`: seconds until it answers again.
        price: of an engine, an hour.
    """

    photos: int = 1_000_000
    batch: int = 16
    engines: int = 64
    rate: float = 10.0
    photo_mb: float = 2.0
    answer_mb: float = 0.5
    network_mb: float = 3_000.0
    disk_mb: float = 1_000.0
    failures: float = 0.01
    restart: float = 60.0
    price: float = 2.0


@dataclass(frozen=True)
class Outcome:
    """What a job took: `seconds`, `repeated` photos, `deaths` of engines, `cost`, and how much of
    the time each of `RESOURCES` was busy, in [0, 1]."""

    seconds: float
    repeated: int
    deaths: int
    cost: float
    busy: dict[str, float]

    @property
    def full(self) -> str:
        """What there is least left of."""
        return max(self.busy, key=lambda name: self.busy[name])


def simulate(job: Job, seed: int = 0) -> Outcome:
    """Run a job, batch by batch."""
    rng = random.Random(seed)
    left = -(-job.photos // job.batch)
    free_network = free_disk = 0.0
    fetching = job.batch * job.photo_mb / job.network_mb
    answering = job.batch / job.rate
    writing = job.batch * job.answer_mb / job.disk_mb
    hazard = job.failures / 3600
    engines = [(0.0, number) for number in range(job.engines)]  # when each is free
    heapq.heapify(engines)
    worked = ended = 0.0
    deaths = 0
    while left:
        start, number = heapq.heappop(engines)
        # photos are read ahead, while the batch before is answered
        free_network = max(free_network, start - answering) + fetching
        ready = max(start, free_network)
        if hazard and rng.expovariate(hazard) < answering:
            lost = rng.random() * answering
            worked, deaths = worked + lost, deaths + 1
            heapq.heappush(engines, (ready + lost + job.restart, number))
            continue
        done = ready + answering
        free_disk = max(free_disk, done) + writing
        # answers are written behind, while the next batch is answered
        waits = max(done, free_disk - answering)
        worked, ended, left = worked + answering, max(ended, free_disk), left - 1
        heapq.heappush(engines, (waits, number))
    batches = -(-job.photos // job.batch)
    busy = {
        "engines": worked / (ended * job.engines),
        "network": (batches + deaths) * fetching / ended,
        "disk": batches * writing / ended,
    }
    cost = ended / 3600 * job.engines * job.price
    return Outcome(ended, deaths * job.batch, deaths, cost, busy)


def table(job: Job, engines: tuple[int, ...]) -> str:
    """The same job with other numbers of engines, as a Markdown table."""
    lines = [
        "| engines | hours | photos a second | cost | deaths | photos repeated | busy | full |"
    ]
    lines.append("| ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |")
    for count in engines:
        told = simulate(replace(job, engines=count))
        busy = " · ".join(f"{name} {told.busy[name]:.0%}" for name in RESOURCES)
        lines.append(
            f"| {count} | {told.seconds / 3600:.2f} | {job.photos / told.seconds:,.0f} | "
            f"{told.cost:,.0f} | {told.deaths} | {told.repeated:,} | {busy} | {told.full} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command: a table for half, once, twice, four and eight times the engines."""
    parser = ArgumentParser("python -m coprs_core.cluster.arithmetic", description=__doc__)
    for field in fields(Job):
        kind = int if isinstance(field.default, int) else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    asked = vars(parser.parse_args())
    for name, value in asked.items():
        if value < 0 or (not value and name not in ("failures", "restart", "price")):
            parser.error(
                f"--{name.replace('_', '-')} is {value:g} and a number over 0 was expected"
            )
    job = Job(**asked)
    print(" · ".join(f"{name} {value:g}" for name, value in asdict(job).items()))
    print(table(job, tuple(max(1, int(job.engines * factor)) for factor in (0.5, 1, 2, 4, 8))))


if __name__ == "__main__":
    main()
