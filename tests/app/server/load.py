"""Many clients at once against the running app: is every answer the one that is given alone?

    python -m tests.app.server.load --clients 20 --answers 20

Starts the app in a process of its own (or takes `--url`), asks each question once alone, then all
clients ask all of them at once. Some answers are cancelled, some clients go away in the middle. It
prints what was lost or mixed up, the latency, and the server's memory; it ends with exit code 1
where anything was lost or mixed up, or memory grew by over 5 % from the 200th answer on.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from coprs_core.masks import decode_rle
from coprs_core.metrics import iou
from tests import ROOT

EXAMPLES = ROOT / "assets" / "examples"
PORT = 17880


@dataclass
class Tally:
    """What happened so far; shared by all clients."""

    counts: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, what: str, process: psutil.Process | None, seconds: float = 0.0) -> None:
        with self.lock:
            self.counts[what] += 1
            if what == "right":
                self.seconds.append(seconds)
                if process:
                    self.memory.append((self.counts["right"], process.memory_info().rss))


def questions() -> list[tuple[str, str]]:
    """(picture, instruction) of each bundled example."""
    entries = json.loads((EXAMPLES / "examples.json").read_text())
    return [(str(EXAMPLES / e["file"]), e["instruction"]) for e in entries]


def verdict(result: dict, right: dict) -> str:
    """How an answer compares with that given alone. Replies are written together and sums rounded
    in another order then: now and then a word differs ("rounded"); a question of somebody else, or
    another mask for the same words, is "mixed up"."""
    if any(result[k] != right[k] for k in ("instruction", "photo_size")):
        return "mixed up"
    if result["reply_ids"] != right["reply_ids"]:
        return "rounded"
    pairs = zip(result["regions"], right["regions"], strict=True)
    masks = [(decode_rle(a["mask"]), decode_rle(b["mask"])) for a, b in pairs]
    return "right" if all(iou(a, b) > 0.99 for a, b in masks) else "mixed up"


def answered(client: Client, photo: str, instruction: str) -> dict:
    return client.predict(handle_file(photo), instruction, api_name="/segment")["result"]


def one_client(
    url: str, expected: dict, answers: int, seed: int, tally: Tally, process: psutil.Process | None
) -> None:
    """Ask at random; every tenth answer is cancelled, every fifteenth client session given up."""
    rng, client = random.Random(seed), Client(url, verbose=False)
    for _ in range(answers):
        (photo, instruction), right = rng.choice(list(expected.items()))
        chance, start = rng.random(), time.perf_counter()
        try:
            if chance < 0.1:
                job = client.submit(handle_file(photo), instruction, api_name="/segment")
                time.sleep(rng.random())
                job.cancel()
                tally.note("cancelled", process)
            elif chance < 0.17:
                client.submit(handle_file(photo), instruction, api_name="/segment")
                client = Client(url, verbose=False)
                tally.note("gone", process)
            else:
                what = verdict(answered(client, photo, instruction), right)
                tally.note(what, process, time.perf_counter() - start)
        except Exception as problem:  # counted, whatever it is
            is_full = "Queue is full" in str(problem) or "Too many people" in str(problem)
            if not is_full and not isinstance(problem, AppError):
                print(f"lost: {type(problem).__name__}: {str(problem)[:200]}", file=sys.stderr)
            tally.note("queue full" if is_full else "lost", process)
            time.sleep(1 if is_full else 0)


def load(url: str, clients: int, answers: int, pid: int | None) -> Tally:
    """Everything at once; returns what happened."""
    process, alone = psutil.Process(pid) if pid else None, Client(url, verbose=False)
    expected = {q: answered(alone, *q) for q in questions()}
    tally = Tally()
    threads = [
        threading.Thread(target=one_client, args=(url, expected, answers, i, tally, process))
        for i in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def report(tally: Tally) -> bool:
    """Print it; whether all is well."""
    print(" · ".join(f"{name} {count}" for name, count in sorted(tally.counts.items())))
    if tally.seconds:
        ordered = sorted(tally.seconds)
        print(
            f"seconds: median {statistics.median(ordered):.2f}, "
            f"95 % {ordered[int(0.95 * (len(ordered) - 1))]:.2f}, longest {ordered[-1]:.2f}"
        )
    is_steady, early = True, [rss for n, rss in tally.memory if n >= 200][:1]
    if tally.memory:
        shown = {n: rss for n, rss in tally.memory if n % 100 == 0 or n == 1}
        print("memory: " + ", ".join(f"{n}: {rss / 1e6:.0f} MB" for n, rss in shown.items()))
    if early:
        growth = tally.memory[-1][1] / early[0] - 1
        is_steady = growth <= 0.05
        print(f"memory from the 200th answer on: {growth:+.1%}")
    return is_steady and not tally.counts["lost"] and not tally.counts["mixed up"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--answers", type=int, default=20, help="of each client")
    parser.add_argument("--url", help="an app that runs already")
    options = parser.parse_args()
    if options.url:
        return 0 if report(load(options.url, options.clients, options.answers, None)) else 1
    command = [sys.executable, "app.py", "--port", str(PORT), "--queue", str(options.clients)]
    app = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=dict(os.environ))
    url = f"http://127.0.0.1:{PORT}/"
    try:
        for _ in range(300):
            try:
                httpx.get(url)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        return 0 if report(load(url, options.clients, options.answers, app.pid)) else 1
    finally:
        app.terminate()


if __name__ == "__main__":
    sys.exit(main())
