"""Which tier is chosen on which machine. Machines are made by refusing this one some system calls."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atlas.errors import SandboxRefused, SandboxUnavailable
from atlas.sandbox import layers
from atlas.sandbox.contract import program
from atlas.sandbox.tiers import allowed, choose, interpreter, make, num_slots
from atlas.sandbox.watch import children
from atlas.settings import SandboxSettings
from atlas.types import Layer
from tests.sandbox.as_user import BOXES, REPOSITORY, needs_root, run_tests_as_user

SETTINGS = SandboxSettings(slots=2, uid=BOXES)
ASK = """
import asyncio, json, sys
from atlas.log import configure_logging
from atlas.sandbox.contract import program
from atlas.sandbox.tiers import choose
from atlas.settings import SandboxSettings
async def main(min_tier, is_unsafe):
    configure_logging("info", form="json")
    choice = await choose(SandboxSettings(slots=2, min_tier=min_tier, uid=int(sys.argv[3])), is_unsafe=is_unsafe)
    layers = {layer.name: [layer.active, layer.reason, layer.remedy] for layer in choice.layers}
    said = ""
    if choice.boxes:
        said = (await choice.boxes.run(program("print('hello')"))).stdout.decode()
        await choice.boxes.close()
    print(json.dumps({"tier": choice.tier, "reason": choice.reason, "layers": layers, "said": said}))
asyncio.run(main(sys.argv[1], sys.argv[2] == "unsafe"))
"""


def ask(refused: str, min_tier: str = "bwrap", *, unsafe: bool = False) -> dict[str, Any]:
    """What `choose` finds where these calls are refused."""
    command = [sys.executable, "-c", ASK, min_tier, "unsafe" if unsafe else "", str(BOXES)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.sandbox.refusing", refused, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found | {"log": done.stderr}


async def test_the_native_tier_is_chosen_where_it_holds() -> None:
    choice = await choose(SETTINGS)
    assert (choice.tier, choice.reason) == ("native", "")
    assert choice.boxes is not None
    assert {layer.name for layer in choice.layers if layer.active} >= {"user namespaces", "seccomp"}
    await choice.boxes.close()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only this one can pass for another")
def test_on_a_machine_whose_system_calls_are_not_known_the_pool_refuses_and_says_so() -> None:
    script = """
import asyncio
from atlas.sandbox import Sandbox
from atlas.settings import SandboxSettings
async def main():
    sandbox = Sandbox(SandboxSettings())
    await sandbox.start()
    status = await sandbox.status()
    print(status.tier, status.reason)
    await sandbox.close()
asyncio.run(main())
"""
    command = ["setarch", "i686", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY)
    assert done.stdout == "None code is isolated on Linux on x86_64 and aarch64 only, this is Linux on i686\n", done.stderr


def test_bubblewrap_is_chosen_where_the_native_tier_fails() -> None:
    found = ask("mount_setattr")
    assert (found["tier"], found["said"]) == ("bwrap", "hello\n"), found
    assert re.match(r"native: .*mount_setattr", found["reason"])
    assert found["layers"]["bubblewrap"][0]


def test_where_neither_holds_code_is_refused_and_the_reason_names_both() -> None:
    found = ask("pivot_root")
    assert found["tier"] is None
    assert re.search(r"native: .*pivot_root.*; bwrap: .*\(sandbox.min_tier = 'bwrap'\)", found["reason"]), found["reason"]
    assert not found["layers"]["seccomp"][0]


def test_nothing_weaker_than_the_settings_allow_is_chosen() -> None:
    found = ask("mount_setattr", "native")
    assert found["tier"] is None
    assert "bwrap:" not in found["reason"]


def test_landlock_alone_is_chosen_where_the_settings_allow_it() -> None:
    found = ask("pivot_root", "landlock")
    assert (found["tier"], found["said"]) == ("landlock", "hello\n"), found
    assert found["layers"]["Landlock"][:2] == [True, layers.LOST_WITHOUT_NAMESPACES]
    assert not found["layers"]["/proc of its own"][0]


def test_landlock_alone_is_not_chosen_without_a_filter_of_system_calls() -> None:
    found = ask("pivot_root,seccomp", "landlock")
    assert found["tier"] is None
    assert "seccomp" in found["reason"].partition("landlock: ")[2], found


def test_without_landlock_there_is_no_such_tier() -> None:
    found = ask("pivot_root,landlock_create_ruleset", "landlock")
    assert found["tier"] is None
    assert "landlock: OSError: Landlock is of version 0 here, 6 is needed" in found["reason"]
    assert "lsm=landlock" in found["layers"]["Landlock"][2]


def test_without_landlock_the_native_tier_holds_and_says_so() -> None:
    found = ask("landlock_create_ruleset")
    assert (found["tier"], found["layers"]["Landlock"][0]) == ("native", False)


def test_without_isolation_code_runs_only_when_somebody_insists() -> None:
    found = ask("pivot_root", unsafe=True)
    assert (found["tier"], found["said"]) == ("none", "hello\n"), found
    assert "WITHOUT ISOLATION" in found["log"]
    assert not any(is_active for is_active, *_ in found["layers"].values())


def test_insisting_changes_nothing_where_there_is_isolation() -> None:
    found = ask("mount_setattr", unsafe=True)
    assert found["tier"] == "bwrap"
    assert "WITHOUT ISOLATION" not in found["log"]


@needs_root
def test_an_ordinary_user_gets_the_same_choices() -> None:
    run_tests_as_user(__file__, "-k", "chosen or neither_holds or insists")


@pytest.mark.parametrize(("min_tier", "tiers"), [("native", 1), ("bwrap", 2), ("landlock", 3)])
def test_the_strongest_tier_is_tried_first(min_tier: Any, tiers: int) -> None:
    assert allowed(min_tier) == ("native", "bwrap", "landlock")[:tiers]


def test_there_are_as_many_slots_as_processors_unless_told_otherwise() -> None:
    assert (num_slots(0), num_slots(7), num_slots(500)) == (min(os.cpu_count() or 1, 20), 7, 20)


def test_the_interpreter_may_be_named_by_its_virtual_environment(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert interpreter(str(tmp_path)) == str(tmp_path / "bin" / "python")
    assert interpreter("") == sys.executable


def test_an_interpreter_that_is_not_there_is_named_and_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(SandboxRefused, match=r"sandbox\.python = .*name an interpreter or a venv's directory"):
        interpreter(str(tmp_path))


async def test_a_wrong_interpreter_is_a_refusal_with_a_reason(tmp_path: Path) -> None:
    choice = await choose(SandboxSettings(python=str(tmp_path / "python9")))
    assert (choice.tier, choice.boxes) == (None, None)
    assert "python9 is not a program" in choice.reason


async def test_an_interpreter_that_no_box_could_see_is_refused_with_the_way_out() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        await asyncio.to_thread(venv.create, folder, symlinks=True)
        choice = await choose(SandboxSettings(python=folder))
    assert choice.boxes is None
    assert choice.reason.startswith(f"{folder}: boxes have a /dev of their own")
    assert "sandbox.python" in choice.reason


async def test_a_bubblewrap_that_fails_says_why() -> None:
    boxes = make("bwrap", SETTINGS, sys.executable)
    boxes._bwrap = "/bin/false"  # type: ignore[attr-defined]
    with pytest.raises(SandboxUnavailable, match="bwrap ended with 1"):
        await boxes.start()
    await boxes.close()


def is_running(pid: int) -> bool:
    """What nobody waits for stays in the table, but has no arguments any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("tier", ["bwrap", "landlock"])
async def test_a_starter_that_dies_takes_its_boxes_along_and_is_replaced(tier: Any) -> None:
    boxes = make(tier, SETTINGS, sys.executable)
    try:
        await boxes.start()
        starter = await boxes._choose("lite")
        assert starter.pid is not None
        running = asyncio.create_task(boxes.run(program("import time; time.sleep(60)")))
        await asyncio.sleep(0.5)
        (box,) = children(starter.pid)
        os.kill(starter.pid, signal.SIGKILL)
        with pytest.raises(SandboxUnavailable, match="died"):
            await running
        assert (await boxes.run(program("print('hello')"))).stdout == b"hello\n"
        assert boxes.num_restarts == 1
        assert not is_running(box)
    finally:
        await boxes.close()


async def test_directories_of_boxes_without_namespaces_are_removed(tmp_path: Path) -> None:
    boxes = make("landlock", SETTINGS, sys.executable)
    await boxes.start()
    result = await boxes.run(program("import os; os.makedirs('a/b'); os.mkdir('c', 0); print(os.getcwd())"))
    place = Path(result.stdout.decode().strip())
    assert place.parents[1].is_dir()
    assert not place.parent.exists()
    await boxes.close()
    assert not place.parents[1].exists()


async def test_directories_that_a_killed_pool_left_are_removed_by_the_next() -> None:
    boxes = make("landlock", SETTINGS, sys.executable)
    await boxes.start()
    place = (await boxes.run(program("import os; print(os.getcwd())"))).stdout.decode().strip()
    starter = await boxes._choose("lite")
    assert starter.pid is not None
    os.kill(starter.pid, signal.SIGKILL)
    await boxes.close()
    left = Path(place).parents[1]
    assert left.is_dir()
    again = make("landlock", SETTINGS, sys.executable)
    await again.start()
    assert not left.exists()
    await again.close()


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


USUAL = {"proc/sys/user/max_user_namespaces": "96000\n"}
APPARMOR = USUAL | {"proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}


@pytest.mark.parametrize(
    ("files", "uid", "cause", "command"),
    [
        (APPARMOR, 1000, "AppArmor", "sudo apparmor_parser -r /etc/apparmor.d/atlas-sandbox"),
        (APPARMOR, 0, "something", "sudo dmesg"),
        (
            USUAL | {"proc/sys/kernel/unprivileged_userns_clone": "0\n"},
            1000,
            "unprivileged_userns_clone is 0",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            {"proc/sys/user/max_user_namespaces": "0\n"},
            1000,
            "max_user_namespaces is 0",
            "sudo sysctl -w user.max_user_namespaces=",
        ),
        (APPARMOR | {".dockerenv": ""}, 1000, "container", "docker run --security-opt seccomp=unconfined"),
        (USUAL | {"run/.containerenv": ""}, 0, "container", "--security-opt systempaths=unconfined"),
        ({}, 1000, "CONFIG_USER_NS", ""),
    ],
)
def test_each_cause_has_one_command(tmp_path: Path, files: dict[str, str], uid: int, cause: str, command: str) -> None:
    remedy = layers.why_no_namespaces(sys.executable, root=machine(tmp_path, files), uid=uid)
    assert cause in remedy.cause
    assert command in remedy.command


def layer(name: str, root: Path, failures: dict[str, str], tier: Any = None) -> Layer:
    found = layers.describe(tier, {}, failures, python=sys.executable, root=root)
    return next(layer for layer in found if layer.name == name)


def test_bubblewrap_under_apparmor_needs_a_profile_that_ubuntu_has(tmp_path: Path) -> None:
    root = machine(tmp_path, APPARMOR)
    found = layer("bubblewrap", root, {"native": "no", "bwrap": "setting up uid map: Permission denied"})
    assert found.reason.startswith("setting up uid map: Permission denied: AppArmor")
    assert found.remedy.startswith("sudo apt install apparmor-profiles && sudo cp ")
    machine(tmp_path, {f"{layers.EXTRA_PROFILES}/{layers.BWRAP_PROFILE}": ""})
    assert layer("bubblewrap", root, {"bwrap": "no"}).remedy.startswith("sudo cp ")


def test_a_missing_proc_is_told_with_the_flags_that_bring_it(tmp_path: Path) -> None:
    found = layer("/proc of its own", machine(tmp_path, {".dockerenv": ""}), {}, "native")
    assert not found.active
    assert "systempaths=unconfined" in found.remedy


def test_the_profile_that_is_installed_names_the_interpreter(tmp_path: Path) -> None:
    python = tmp_path / "bin dir" / "python3"
    command = layers.install_profile(str(python)).partition(" | ")[0]
    text = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True, cwd="/").stdout
    assert f'profile atlas-sandbox "{python}" flags=(unconfined) {{\n  userns,\n' in text
    assert "@PYTHON@" not in text
