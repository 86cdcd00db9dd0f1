"""The lock file covers what is needed, and the Dockerfile keeps its word."""

import json
import re

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app import options
from tests import ROOT

LOCK = ROOT / "assets" / "docs" / "constraints.txt"
AGAIN = f"run the command in the head of {LOCK.name}"
PYTHON = {"python_version": "3.12", "python_full_version": "3.12.0"}
OTHERS_VARIABLES = {
    *("HOME", "TMPDIR", "USER"),
    *("HF_HOME", "TORCH_HOME"),
    *("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"),
}


def dockerfile() -> list[str]:
    """The Dockerfile's instructions, each on one line."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def given(instruction: str) -> list[str]:
    return [i.split(" ", 1)[1].strip() for i in dockerfile() if i.startswith(f"{instruction} ")]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for line in given("ENV") for pair in line.split())


def locked() -> dict[str, str]:
    """Normalised name → version."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK.read_text(), re.MULTILINE))


def test_the_lock_holds_a_version_of_every_requirement():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    asked = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    for wish in (a for a in asked if a.marker is None or a.marker.evaluate(PYTHON)):
        version = locked().get(canonicalize_name(wish.name), "none")
        assert version != "none" and version in wish.specifier, f"{wish}: {version} locked: {AGAIN}"


def test_every_locked_version_has_hashes():
    entries = re.split(r"^(?=[a-z0-9-]+==)", LOCK.read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) == len(locked()) > 20
    for entry in entries:
        assert re.search(r"^    --hash=sha256:[0-9a-f]{64}\b", entry, re.MULTILINE), entry


def test_the_container_installs_what_is_locked():
    steps = " ".join(given("RUN"))
    assert "--require-hashes" in steps
    assert any(LOCK.name in copied for copied in given("COPY"))


def test_the_container_does_not_run_as_root():
    user, group = map(int, given("USER")[-1].split(":"))
    assert user > 0 and group > 0


def test_the_container_writes_to_its_volume_alone():
    (volume,) = given("VOLUME")
    variables = environment()
    for name in ("HOME", "TMPDIR", "HF_HOME", "TORCH_HOME"):
        assert f"{variables[name]}/".startswith(f"{volume}/"), name


def test_the_container_sets_variables_that_exist():
    ours = {f"COPRS_{name.upper().replace('-', '_')}" for name in options._OPTIONS}
    assert set(environment()) <= ours | OTHERS_VARIABLES


def test_the_container_checks_the_port_that_it_listens_on():
    (check,) = given("HEALTHCHECK")
    program = json.loads(check.split(" CMD ", 1)[1])
    assert program[:2] == ["python", "-c"]
    compile(program[2], "HEALTHCHECK", "exec")
    assert "COPRS_PORT" in program[2]
    assert given("EXPOSE") == [environment()["COPRS_PORT"]]


def test_nothing_private_is_copied_into_the_container():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")][0] == "*"
    taken = {line for line in lines if line.startswith("!")}
    assert taken == {"!LICENSE", "!app.py", "!app", "!coprs_core", "!assets", f"!{LOCK.relative_to(ROOT)}"}  # fmt: skip
