"""Answer many photos on a Ray cluster: an engine in each actor; files and resuming as in `batch`.

An actor or a machine that dies loses nothing: its batch is run again elsewhere, and what of it was
written already is not done again (Ray Data, `map_batches` over a pool of actors).
"""

import math
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from coprs_core.answer.concurrent import DEFAULT_AT_ONCE
from coprs_core.batch import BatchOptions, BatchOutcome, segment_photos, split_done
from coprs_core.checkpoints.options import LoadOptions
from coprs_core.errors import CoPRSError, first_line
from coprs_core.example import Example

LOCAL = "local"
_INPUT_COLUMNS = ("photo", "instruction", "name")
_OUTPUT_COLUMNS = ("name", "problem", "outcome", "photo_flags", "load_error")


@dataclass(frozen=True)
class Cluster:
    """Where a job runs, and with how many engines.

    Attributes:
        address: "local", for this machine; "auto", for the cluster that it belongs to; or
            "ray://host:port" or "host:port".
        actors: how many engines; 0: one for each GPU where `gpus` asks for any, else for every two
            CPUs.
        gpus, cpus: of each.
    """

    address: str
    actors: int = 0
    gpus: float = 0.0
    cpus: float = 1.0


def segment_on_ray(
    examples: list[Example],
    options: BatchOptions,
    out: Path,
    load_options: LoadOptions,
    cluster: Cluster,
    at_once: int = DEFAULT_AT_ONCE,
    notify: Callable[[str], None] = lambda _: None,
) -> Iterator[BatchOutcome]:
    """As `batch.segment_photos`, on a cluster; `out` is a folder that all machines share. `notify`
    gets a sentence that says who can reach the Ray that is started here.

    Raises `CoPRSError` where Ray is not installed, or the cluster cannot be reached.
    """
    todo, done = split_done(examples, options, out)
    yield from done
    if not todo:
        return
    data = _connect(cluster)
    if cluster.address == LOCAL:
        notify(_describe_exposure())
    actors = cluster.actors or _count_actors(data, cluster)
    rows = [{name: str(getattr(e, name)) for name in _INPUT_COLUMNS} for e in todo]
    jobs = data.from_items(rows, override_num_blocks=math.ceil(len(rows) / at_once)).map_batches(
        _Actor,
        fn_constructor_args=(options, str(out.absolute()), load_options, at_once),
        batch_size=at_once,
        compute=data.ActorPoolStrategy(size=actors),
        num_gpus=cluster.gpus,
        num_cpus=cluster.cpus,
    )
    from ray.exceptions import RayError

    try:
        for row in jobs.iter_rows():
            if row["load_error"]:
                raise CoPRSError(row["load_error"])
            name, flags = row["name"], tuple(row["photo_flags"].split())
            yield BatchOutcome(name, out / name, row["outcome"], row["problem"], flags)
    except RayError as problem:
        raise CoPRSError(
            f"The Ray cluster gave up ({first_line(problem)}): what was answered is kept, run this "
            "again to go on."
        ) from problem


class _Actor:
    """A Ray actor: one engine, loaded once, that answers batches."""

    def __init__(self, options: BatchOptions, out: str, load_options: LoadOptions, at_once: int):
        from coprs_core.answer.engine import Engine
        from coprs_core.checkpoints.load import load_checkpoint

        self.options, self.out, self.at_once = options, Path(out), at_once
        self.load_error = ""
        try:
            self.engine = Engine(load_checkpoint(options.model, load_options))
        except CoPRSError as problem:  # raised here, Ray would wrap it in pages of its own
            self.load_error = str(problem)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        columns = zip(*(map(str, batch[column]) for column in _INPUT_COLUMNS), strict=True)
        examples = [Example(photo, text, name=name) for photo, text, name in columns]
        if self.load_error:
            return {column: [self.load_error] for column in _OUTPUT_COLUMNS}
        done: dict[str, list[str]] = {column: [] for column in _OUTPUT_COLUMNS}
        outcomes = segment_photos(
            examples, self.options, self.out, lambda: self.engine, at_once=self.at_once
        )
        for one in outcomes:
            done["name"].append(one.name)
            done["problem"].append(one.problem)
            done["outcome"].append(one.outcome)
            done["photo_flags"].append(" ".join(one.photo_flags))
            done["load_error"].append("")
        return done


def _connect(cluster: Cluster) -> Any:
    """Connect to the cluster, or start one here; returns the module `ray.data`."""
    if cluster.address == LOCAL:
        _require_token()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends nothing to Ray's makers
    # else Ray hides all GPUs from actors that ask for none, and `--device cuda` fails there
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        from ray import data
    except ModuleNotFoundError as problem:
        raise CoPRSError(
            f"--ray needs {problem.name}, which is not installed: "
            'pip install -e ".[ray]" in the folder of CoPRS.'
        ) from problem
    from ray.exceptions import RayError

    try:
        if not ray.is_initialized():
            address = None if cluster.address == LOCAL else cluster.address
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (RayError, ConnectionError, ValueError, RuntimeError, OSError) as problem:
        raise CoPRSError(
            f"The Ray cluster {cluster.address!r} cannot be reached ({first_line(problem)}): start "
            "it with `ray start --head`, set RAY_AUTH_MODE and RAY_AUTH_TOKEN here as they are "
            "there, or give --ray local."
        ) from problem
    data.DataContext.get_current().enable_progress_bars = False
    return data


def _require_token() -> None:
    """Make a Ray that is started here require a token: whoever reaches one without can run code.

    What the user has set stays. Else the token is made for this run and written nowhere; Ray itself
    would keep it in a file that other users of the machine may read.
    """
    if "ray" not in sys.modules:  # Ray reads it when it is first imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if not given and not (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _describe_exposure() -> str:
    """A sentence that says who can reach the Ray that was started here."""
    try:
        ports = sorted(
            connection.laddr.port
            for process in psutil.Process().children(recursive=True)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in ("0.0.0.0", "::")
        )
    except psutil.Error:  # some systems show connections to administrators alone
        where = "Ray may listen on all network interfaces"
    else:
        if not ports:
            return "Ray listens on this machine alone."
        where = f"Ray listens on all network interfaces (ports {', '.join(map(str, ports))})"
    if _has_token_auth():
        return (
            f"{where} and lets in who knows its token. Other machines join with "
            "RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN that you set here before "
            "(`ray get-auth-token --generate`)."
        )
    return (
        f"{where} and asks for no token: whoever reaches them can run code here. Close them to "
        "others, or leave RAY_AUTH_MODE unset and take Ray 2.52 or newer."
    )


def _has_token_auth() -> bool:
    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled
    except ImportError:  # before 2.52
        return False
    return is_token_auth_enabled()


def _count_actors(data: Any, cluster: Cluster) -> int:
    """An engine for each GPU of a cluster, or for every two CPUs where it has none."""
    import ray

    resources = ray.cluster_resources()
    if cluster.gpus:
        return max(1, int(resources.get("GPU", 0) / cluster.gpus))
    return max(1, int(resources.get("CPU", 1) // max(2.0, cluster.cpus)))
