"""Every attack of `sandbox_attacks` fails: as root and as nobody, with namespaces and without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trivium.llmos.sandbox import probe

pytestmark = pytest.mark.skipif(not probe().usable, reason=probe().summary)

BATTERY = Path(__file__).with_name("sandbox_battery.py")
NOBODY = 65534


def interpreter_for(user: str) -> str | None:
    """A Python that `user` may run, or None. Nobody often may not enter the home of ours."""
    if user == "self":
        return sys.executable
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        check = "import sys; sys.exit(sys.version_info < (3, 11))"
        try:
            done = subprocess.run([python, "-c", check], user=NOBODY, group=NOBODY, cwd="/", env={})
        except OSError:
            continue
        if done.returncode == 0 and os.access(BATTERY, os.R_OK):
            return python
    return None


def battery(mode: str, level: str, user: str) -> dict:
    if user == "nobody" and os.geteuid() != 0:
        pytest.skip("only root can become nobody")
    if level == "full" and not probe().namespaces:
        pytest.skip(f"no namespaces: {probe().without_namespaces}")
    python = interpreter_for(user)
    if python is None:
        pytest.skip("no Python that nobody may run")
    become = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if user == "nobody" else {}
    done = subprocess.run(
        [python, "-B", str(BATTERY), mode, level],
        cwd="/",
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}
        if user == "nobody"
        else None,
        capture_output=True,
        text=True,
        timeout=120,
        **become,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("user", ["self", "nobody"])
@pytest.mark.parametrize("level", ["full", "plain", "old"])
@pytest.mark.parametrize("mode", ["python", "terminal"])
def test_no_attack_succeeds(mode: str, level: str, user: str) -> None:
    result = battery(mode, level, user)
    assert len(result["attacks"]) >= (105 if mode == "python" else 100)
    assert ("no namespaces" not in result["level"]) == (level == "full")
    succeeded = [attack for attack in result["attacks"] if attack["claim"] or attack["traces"]]
    assert succeeded == []
    assert result["lost"] == []
    assert result["traces"] == []


def test_the_same_attacks_succeed_and_are_noticed_without_a_sandbox() -> None:
    result = battery("free", "plain", "self")
    assert len(result["attacks"]) >= 60
    unnoticed = [a for a in result["attacks"] if not (a["claim"] or a["traces"])]
    assert unnoticed == []
    traced = [attack for attack in result["attacks"] if attack["traces"]]
    assert len(traced) >= 35


@pytest.mark.parametrize("level", ["full", "plain", "old"])
def test_random_system_calls_change_nothing_outside(level: str) -> None:
    result = battery("fuzz", level, "self")
    assert [seed for seed in result["attacks"] if seed["claim"] or seed["traces"]] == []
    assert result["traces"] == []
    assert sum(seed["error"] == "" for seed in result["attacks"]) >= 6
