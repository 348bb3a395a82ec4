"""Where figures come from: device, driver, versions, commit, clocks, date. No host name, no user, no path."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import lpkernels

ROOT = Path(__file__).resolve().parent.parent
COMMIT_VARIABLE = "LPKERNELS_COMMIT"  # for checkouts that travel without their git folder
_SMI = {
    "driver": "driver_version",
    "sm_clock": "clocks.sm",
    "sm_clock_most": "clocks.max.sm",
    "memory_clock": "clocks.mem",
    "power_limit": "power.limit",
    "temperature": "temperature.gpu",
    "throttle_reasons": "clocks_throttle_reasons.active",
}


def describe(device: torch.device) -> dict[str, Any]:
    """Everything a record says about its machine and its software."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "device_type": device.type,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": _version("triton"),
        "lpkernels": lpkernels.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "l2_mb": round(properties.L2_cache_size / 2**20, 1),
        } | clocks(device)
    return facts


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def slug(device: torch.device) -> str:
    """Folder name of a device's results: ``nvidia-h200``, ``cpu``."""
    if device.type != "cuda":
        return device.type
    return re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")


def clocks(device: torch.device) -> dict[str, str]:
    """Driver, clocks, power limit and temperature as nvidia-smi reads them now; empty where it cannot."""
    index = device.index if device.index is not None else torch.cuda.current_device()
    query = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(_SMI.values())}", "--format=csv,noheader"]
    text = _output(query)
    return dict(zip(_SMI, (part.strip() for part in text.split(",")), strict=False)) if text else {}


def commit() -> str:
    """The checkout's commit, with ``+changes`` if files differ from it; ``unknown`` outside a checkout."""
    if named := os.environ.get(COMMIT_VARIABLE):
        return named
    head = _output(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"])
    if not head:
        return "unknown"
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return head + ("+changes" if changed else "")


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text(errors="replace"))):
        return found[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return str(__import__(package).__version__)
    except ImportError:
        return None
