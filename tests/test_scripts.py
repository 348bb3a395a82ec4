"""Scripts that only a GPU machine runs in earnest: their calls are right on any."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_kernel_runs() -> None:
    script = ROOT / "scripts" / "every_kernel.py"
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ran = done.stdout.splitlines()
    convs = (
        "conv_act",
        "spade_conv",
        "conv_spade",
        "spade_blocks",
        "spade_shortcut",
        "upsample_conv",
        "conv_pool",
        "conv_img",
        "mask_conv3d",
    )
    for op in (*convs, "flow_warp", "occlusion_head", "patch_norm"):
        assert any(line.startswith(op) for line in ran), op


def test_a_pattern_chooses() -> None:
    script = ROOT / "scripts" / "every_kernel.py"
    done = subprocess.run([sys.executable, script, "mask"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mask_conv3d"]
