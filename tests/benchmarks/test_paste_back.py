"""paste_back's benchmark: the original's way on the host beside the ways on the device."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from benchmarks.context import Context, Options
from benchmarks.ops import bench_paste_back
from tests.benchmarks.fakes import CPU


def warp(picture, matrix, size):
    """What ``cv2.warpAffine`` does: ``matrix`` leads from the picture's (x, y) to the answer's, zero outside."""
    whole = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    swapped, shift = whole[:2, :2][::-1, ::-1], whole[:2, 2][::-1]
    planes = [
        affine_transform(picture[..., colour].astype(float), swapped, shift, size[::-1], order=1) for colour in range(3)
    ]
    return np.stack(planes, -1).round().astype(np.uint8)


def measured():
    context = Context(Options(CPU, "tiny", seconds=0.01, providers=("original-*", "lpkernels-ref-fp32")))
    (work,) = (one for one in bench_paste_back.subjects(context) if one.shape.endswith("to the host"))
    return {one.provider: one for one in context.harness_with(min_rounds=2, max_rounds=2).measure(work)}


def test_the_originals_way_gives_the_same_picture(monkeypatch):
    threads = []
    fake = SimpleNamespace(setNumThreads=threads.append, warpAffine=warp)
    monkeypatch.setitem(sys.modules, "cv2", fake)
    found = measured()
    assert {one.status for one in found.values()} == {"ok"}, found
    assert found["original-opencv"].relative_error < 2e-3
    assert threads == [0]


def test_without_opencv_the_reason_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    found = measured()
    assert found["original-opencv"].status == "skipped"
    assert "needs OpenCV" in found["original-opencv"].reason
    assert found["lpkernels-ref-fp32"].status == "ok"


def test_opencv_itself():
    pytest.importorskip("cv2")
    found = measured()
    assert found["original-opencv"].status == "ok"
    assert found["original-opencv"].relative_error < 2e-3
