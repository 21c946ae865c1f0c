"""The layers of isolation as a person sees them: which hold here, why the others do not, and the command that mends it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from atlas.sandbox.inside import landlock
from atlas.sandbox.inside.alone import MIN_LANDLOCK
from atlas.settings import packaged
from atlas.types import Layer, Tier

ROOT = Path("/")
PROFILE = "/etc/apparmor.d/atlas-sandbox"
BWRAP_PROFILE = "bwrap-userns-restrict"
EXTRA_PROFILES = "usr/share/apparmor/extra-profiles"
DOCKER_OPTIONS = "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
IN_CONTAINER = ".dockerenv", "run/.containerenv"
LOST_WITHOUT_NAMESPACES = (
    "no namespaces: a box can find out which paths exist; it has no network at all, no /proc, no /dev/shm, and no limit on the"
    " number and size of its files together"
)


class Remedy(NamedTuple):
    """Why something is not to be had, and the one command that changes it."""

    cause: str
    command: str = ""


def describe(
    tier: Tier | None, found: Mapping[str, Any], failures: Mapping[str, str], *, python: str, root: Path = ROOT
) -> tuple[Layer, ...]:
    """Every layer.

    Args:
        tier: that was chosen.
        found: what its zygote told of itself.
        failures: why the tiers before it do not hold.
        python: interpreter that boxes run.
        root: of the files that tell about the machine.
    """
    return (
        _namespaces(tier, failures.get("native"), python, root),
        _bubblewrap(tier, failures.get("bwrap"), root),
        _landlock(tier, failures.get("landlock")),
        _seccomp(tier),
        _proc(tier, found, root),
    )


def _namespaces(tier: Tier | None, failure: str | None, python: str, root: Path) -> Layer:
    if tier == "native":
        return Layer(name="user namespaces", active=True)
    remedy = why_no_namespaces(python, root=root)
    reason = f"{failure}: {remedy.cause}" if failure else remedy.cause
    return Layer(name="user namespaces", active=tier == "bwrap", reason=reason, remedy=remedy.command)


def why_no_namespaces(python: str, *, root: Path = ROOT, uid: int | None = None) -> Remedy:
    """The likeliest reason that this machine makes none for us; asked when it does not."""
    is_root = (os.getuid() if uid is None else uid) == 0
    if any((root / name).exists() for name in IN_CONTAINER):
        return Remedy("this container forbids them", f"docker run {DOCKER_OPTIONS} ...")
    if not is_root and _sysctl(root, "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return Remedy("AppArmor lets only programs with a profile use them", install_profile(python))
    if not is_root and _sysctl(root, "kernel/unprivileged_userns_clone") == "0":
        return Remedy("kernel.unprivileged_userns_clone is 0", "sudo sysctl -w kernel.unprivileged_userns_clone=1")
    if _sysctl(root, "user/max_user_namespaces") == "0":
        return Remedy("user.max_user_namespaces is 0", "sudo sysctl -w user.max_user_namespaces=10000")
    if _sysctl(root, "user/max_user_namespaces") is None:
        return Remedy("this kernel has none (CONFIG_USER_NS)")
    return Remedy("something on this machine forbids them; its kernel log may say what", "sudo dmesg | tail")


def install_profile(python: str) -> str:
    """The command that fills in our AppArmor profile and loads it."""
    source = shlex.quote(str(packaged("deploy") / "apparmor" / "atlas-sandbox"))
    path = shlex.quote(f"s|@PYTHON@|{Path(python).resolve()}|")
    return f"sed {path} {source} | sudo tee {PROFILE} >/dev/null && sudo apparmor_parser -r {PROFILE}"


def _sysctl(root: Path, name: str) -> str | None:
    try:
        return (root / "proc/sys" / name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _bubblewrap(tier: Tier | None, failure: str | None, root: Path) -> Layer:
    name = "bubblewrap"
    if tier == "bwrap":
        return Layer(name=name, active=True, reason="each run starts a box of its own, which takes longer than the native tier")
    if shutil.which("bwrap") is None:
        return Layer(name=name, active=False, reason="not installed", remedy="sudo apt install bubblewrap")
    if failure is None:
        return Layer(name=name, active=False, reason="not needed")
    remedy = _why_no_bubblewrap(root)
    return Layer(name=name, active=False, reason=f"{failure}: {remedy.cause}" if remedy.cause else failure, remedy=remedy.command)


def _why_no_bubblewrap(root: Path) -> Remedy:
    if any((root / name).exists() for name in IN_CONTAINER):
        return Remedy("this container forbids it", f"docker run {DOCKER_OPTIONS} ...")
    if _sysctl(root, "kernel/apparmor_restrict_unprivileged_userns") == "1":
        install = "" if (root / EXTRA_PROFILES / BWRAP_PROFILE).exists() else "sudo apt install apparmor-profiles && "
        target = f"/etc/apparmor.d/{BWRAP_PROFILE}"
        copy = f"sudo cp /{EXTRA_PROFILES}/{BWRAP_PROFILE} {target} && sudo apparmor_parser -r {target}"
        return Remedy("AppArmor lets it through with a profile only", install + copy)
    return Remedy("")


def _landlock(tier: Tier | None, failure: str | None) -> Layer:
    version = landlock.version()
    if tier == "none" or not version:
        return Layer(name="Landlock", active=False, reason=failure or _why_no_landlock(version), remedy=_enable_landlock(version))
    if tier == "landlock":
        return Layer(name="Landlock", active=True, reason=LOST_WITHOUT_NAMESPACES)
    reason = f"version {version}" + ("" if version >= MIN_LANDLOCK else "; signals are kept within boxes by namespaces alone")
    return Layer(name="Landlock", active=tier is not None, reason=failure or reason)


def _why_no_landlock(version: int) -> str:
    return "not used" if version else "the kernel has none, or does not start it"


def _enable_landlock(version: int) -> str:
    if version:
        return ""
    edit = r"""'s/^GRUB_CMDLINE_LINUX="/&lsm=landlock,lockdown,yama,integrity,apparmor,bpf /'"""
    return f"sudo sed -i {edit} /etc/default/grub && sudo update-grub && sudo reboot"


def _seccomp(tier: Tier | None) -> Layer:
    is_active = tier is not None and tier != "none"  # no box of these begins without it
    return Layer(name="seccomp", active=is_active, reason="" if is_active else "no box is made")


def _proc(tier: Tier | None, found: Mapping[str, Any], root: Path) -> Layer:
    name = "/proc of its own"
    if tier in ("native", "bwrap") and found.get("proc"):
        return Layer(name=name, active=True)
    if tier not in ("native", "bwrap"):
        return Layer(name=name, active=False, reason="there is no process namespace")
    command = f"docker run {DOCKER_OPTIONS} ..." if any((root / path).exists() for path in IN_CONTAINER) else ""
    reason = "paths in /proc are covered here, so boxes have none; programs that need it fail"
    return Layer(name=name, active=False, reason=reason, remedy=command)
