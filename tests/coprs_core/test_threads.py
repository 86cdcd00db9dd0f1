"""How threads wait: set before torch is loaded, by whatever door, and a user's own setting wins."""

import os
import subprocess
import sys

import pytest

from coprs_core.threads import SPIN_COUNT
from tests import ROOT

CHECK = (
    "import os, sys; print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'), "
    "os.environ.get('OMP_WAIT_POLICY'))"
)


def printed(before: str, **settings: str) -> list[str]:
    """What `CHECK` prints in a process of its own, after other lines."""
    own = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    run = [sys.executable, "-c", f"{before}; {CHECK}"]
    done = subprocess.run(run, cwd=ROOT, env=own | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "door", ["import coprs_core", "import app.options", "import coprs_core.__main__"]
)
def test_threads_sleep_before_torch_is_loaded(door):
    assert printed(door) == ["False", str(SPIN_COUNT), "None"]


@pytest.mark.parametrize(
    ("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")]
)
def test_a_users_own_setting_wins(name, value):
    _, spins, policy = printed("import coprs_core", **{name: value})
    assert (spins, policy) == (("7", "None") if name == "GOMP_SPINCOUNT" else ("None", "ACTIVE"))


def test_the_tests_themselves_run_so():
    assert "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ
