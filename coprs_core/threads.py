"""How the threads that compute wait for each other; decided before torch is loaded.

torch's threads (OpenMP, libgomp) wait in a loop. Where another process has a core, they mostly wait
for a thread that does not run: beside two busy loops a photo model did not answer within minutes.
"""

import os

SPIN_COUNT = 1500
"""Turns of that loop before a thread goes to sleep, some 20 to 70 µs as the CPU's pause takes 14 to
47 ns: longer than most gaps between two operations of a network, far shorter than a thread is kept
waiting for a core. By figures (assets/docs/performance.md): none cost 10 to 40 % more time on a
quiet machine, 3,000 some 10 to 30 % more beside two busy loops."""
_USER_VARIABLES = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"


def limit_thread_spinning() -> None:
    """Threads that wait longer than the gaps of a computation sleep; a user's own setting of how
    they wait is left alone. No effect once torch is loaded, or with another OpenMP than libgomp."""
    if not any(name in os.environ for name in _USER_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
