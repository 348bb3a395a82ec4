"""The op layer itself: one op, one stem; schemas agree; the choice of a backend is obeyed and explained."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lpkernels import _lib, errors, ops, ref
from lpkernels.ops import _op
from tests.ops.test_flow_warp import make_inputs

ROOT = Path(__file__).parents[2]
OPS = sorted(ops.registry())


def inputs() -> list[torch.Tensor]:
    return make_inputs((1, 2, 2, 2, 3, 3), torch.float32, "cpu")


@pytest.mark.parametrize("name", OPS)
def test_one_op_one_stem(name: str) -> None:
    expected = [
        f"lpkernels/ops/{name}.py",
        f"lpkernels/ref/{name}.py",
        f"tests/ops/test_{name}.py",
        f"benchmarks/ops/bench_{name}.py",
    ]
    assert [path for path in expected if not (ROOT / path).exists()] == []
    kernels = [*ROOT.glob(f"csrc/*/{name}.cu"), *ROOT.glob(f"lpkernels/triton/{name}.py")]
    assert kernels, f"{name} has neither csrc/*/{name}.cu nor lpkernels/triton/{name}.py"


def test_every_file_is_an_op() -> None:
    stems = {
        path.stem for folder in ("ops", "ref", "triton") for path in (ROOT / "lpkernels" / folder).glob("[!_]*.py")
    }
    stems |= {path.stem.removesuffix("_winograd") for path in ROOT.glob("csrc/*/*.cu")}  # with such weights
    assert stems <= set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_library_and_python_agree_on_the_schema(name: str) -> None:
    def bare(schema: str) -> str:  # returned values' names are documentation
        arguments, returned = schema.split(" -> ")
        return arguments + " -> " + re.sub(r"(Tensor\??) \w+", r"\1", returned)

    actual = str(getattr(torch.ops.lpkernels, name).default._schema).removeprefix("lpkernels::")
    assert bare(actual) == bare(ops.registry()[name].schema)


def test_choice_names_what_was_passed_over() -> None:
    choice = ops.registry()["flow_warp"].choose("cpu")
    assert choice.passed["cuda"] == "needs cuda tensors"
    assert choice.backend == ("cpu" if _lib.status().path else "ref")


def test_use_backend_is_obeyed_and_undone() -> None:
    op = ops.registry()["flow_warp"]
    before = op.choose("cpu").backend
    with ops.use_backend("ref"):
        assert op.choose("cpu") == ops.Choice("ref", {})
        with ops.use_backend("cpu", "ref"):
            assert op.choose("cpu").backend == before
        torch.testing.assert_close(ops.flow_warp(*inputs()), ref.flow_warp(*inputs()), rtol=0, atol=0)
    assert op.choose("cpu").backend == before


def test_use_backend_stays_in_its_thread() -> None:
    seen: list[tuple[str, ...] | None] = []
    with ops.use_backend("ref"):
        thread = threading.Thread(target=lambda: seen.append(ops.requested_backends()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_environment_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPKERNELS_BACKEND", "triton, ref")
    choice = ops.registry()["flow_warp"].choose("cpu")
    assert choice.backend == "ref"
    assert "no such backend" in choice.passed["triton"]


@pytest.mark.parametrize("text", ["fast", "ref,gpu", ","])
def test_unknown_backend_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPKERNELS_BACKEND", text)
    with pytest.raises(
        errors.InputError, match="LPKERNELS_BACKEND: expected backends out of cuda, triton, torch, cpu, ref"
    ):
        ops.flow_warp(*inputs())


def test_no_silent_fallback() -> None:
    with (
        ops.use_backend("cuda"),
        pytest.raises(errors.BackendError, match="cannot run on cpu tensors: cuda: needs cuda"),
    ):
        ops.flow_warp(*inputs())


def test_pixels_that_a_kernel_cannot_begin_at_go_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = torch.zeros(1, 2, 2, 36, dtype=torch.float16)
    assert [_op.spacing([part]) for part in (buffer, buffer[..., 4:], buffer[..., 3:], buffer.float())] == [36, 4, 3, 0]
    op = ops.registry()["conv_pool"]
    hopper = dataclasses.replace(op.backends["cuda"], why_not=lambda device_type: None)
    monkeypatch.setitem(op.backends, "cuda", hopper)
    assert [op.choose("cuda", spacing=spacing).backend for spacing in (0, 8, 48)] == ["cuda"] * 3
    with ops.use_backend("cuda", "ref"):
        choice = op.choose("cuda", spacing=36)
    assert choice.backend == "ref"
    assert choice.passed["cuda"] == "made for pixels that begin at multiples of 8 elements, got 36"


def test_missing_library_is_reported_and_ref_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lib, "status", lambda: _lib.LibStatus(None, "the op library is not built"))
    choice = ops.registry()["flow_warp"].choose("cpu")
    assert choice.backend == "ref"
    assert choice.passed["cpu"] == "the op library is not built"
    ops.flow_warp(*inputs())


def test_lib_status_of_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_lib, "_FOLDER", tmp_path)
    status = _lib.status.__wrapped__()
    assert status.path is None
    assert "not built" in str(status.error)
    (tmp_path / "_ops.abi3.so").write_bytes(b"no library")
    assert "cannot be loaded" in str(_lib.status.__wrapped__().error)


def test_build_info() -> None:
    info = _lib.build_info()
    if "error" in info:
        pytest.skip(info["error"])
    assert info["torch"] == torch.__version__
    assert _lib.kernel_attributes() == [] or info["cuda"]


@pytest.mark.gpu
@pytest.mark.skipif(not _lib.build_info().get("cuda"), reason="this build has no CUDA kernels")
def test_kernel_attributes() -> None:
    rows = {row["name"]: row for row in _lib.kernel_attributes()}
    half = rows["flow_warp<half>"]
    assert half["registers"] > 0
    assert half["local_bytes"] == 0
    assert half["blocks_per_multiprocessor"] >= 4


def test_importing_loads_no_compiler() -> None:
    """PyTorch's compiler takes seconds to load, which is most of a warm start."""
    code = "import sys, lpkernels as l; l.Animator, l.LivePortrait, l.optimize; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_choice_of_a_backend_is_a_constant_to_the_compiler() -> None:
    def marked() -> None: ...

    torch.compiler.assume_constant_result(marked)
    assert vars(_op._backend_name) == vars(marked)
