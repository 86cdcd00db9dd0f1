"""The recorded versions and licences cover what is needed, and the Dockerfile keeps its word."""

import json
import re

from app import options
from tests.record_dependencies import CONSTRAINTS, LICENCES, ROOT, needed, pinned

AGAIN = "run python -m tests.record_dependencies"
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


def test_a_version_that_satisfies_all_is_recorded_of_every_dependency():
    pins = pinned()
    for name, asked in needed(pins).items():
        assert name in pins, f"{name} is not in {CONSTRAINTS.name}: {AGAIN}"
        for requirement in asked:
            fits = requirement.specifier.contains(pins[name], prereleases=True)
            assert fits, f"{requirement} is asked for, {pins[name]} recorded: {AGAIN}"


def test_every_recorded_version_has_hashes():
    entries = re.split(r"^(?=[a-z0-9-]+==)", CONSTRAINTS.read_text(), flags=re.MULTILINE)[1:]
    assert len(entries) == len(pinned()) > 20
    for entry in entries:
        first, *hashes = entry.replace("\\\n", "").split()
        assert hashes, f"{first} has no hash: {AGAIN}"
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", h) for h in hashes), first


def test_every_recorded_version_has_a_licence():
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (.*?) \|$", LICENCES.read_text(), re.MULTILINE)
    listed = {name: version for name, version, _ in rows if name not in ("package", "---")}
    assert listed == pinned(), AGAIN
    unknown = [name for name, _, licence in rows if licence.lower() in ("", "unknown", "none")]
    assert not unknown, f"look up their licences and add them to NOT_IN_METADATA: {unknown}"


def test_the_container_installs_what_is_recorded():
    steps = " ".join(given("RUN"))
    assert "--require-hashes" in steps
    assert any(CONSTRAINTS.name in copied for copied in given("COPY"))


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
    assert taken == {"!LICENSE", "!app.py", "!app", "!coprs_core", "!assets", f"!{CONSTRAINTS.relative_to(ROOT)}"}  # fmt: skip
