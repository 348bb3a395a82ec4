"""CUDA kernels without a GPU: their own code, compiled for the CPU and run thread by thread.

Those of the motion extractor, and the others that take the same instructions.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lpkernels import ref
from lpkernels.ref.depthwise_linear import depthwise_norm_in
from lpkernels.ref.grn_linear import grn_factors
from tests.ops import contract
from tests.ops.test_convnext_stage import make_inputs as stage_inputs
from tests.ops.test_depthwise_linear import make_inputs as depthwise_inputs
from tests.ops.test_grn_linear import make_inputs as grn_inputs
from tests.ops.test_norm_downsample import make_inputs as downsample_inputs
from tests.ops.test_occlusion_head import make_inputs as occlusion_inputs
from tests.ops.test_patch_norm import make_inputs as patch_inputs
from tests.ops.test_pool_norm_linear import make_inputs as pool_inputs

ROOT = Path(__file__).parents[2]
HALF = torch.float16


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program run.cpp, compiled; with checks of every address where the compiler has them."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    probe = folder / "probe.cpp"
    probe.write_text("int main(int n, char**) { return static_cast<int>(static_cast<_Float16>(n)) - 1; }\n")

    def builds(source: Path, *flags: str) -> bool:
        command = [compiler, "-std=c++20", "-O1", *flags, str(source), "-o", str(folder / "run")]
        return subprocess.run(command, capture_output=True).returncode == 0

    if not builds(probe):
        pytest.skip(f"{compiler} has no _Float16")
    checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover"]
    checks = checked if builds(probe, *checked) else []
    source, includes = Path(__file__).with_name("run.cpp"), [Path(__file__).with_name("emulated"), ROOT / "csrc"]
    assert builds(source, *checks, *[f"-I{path}" for path in includes])
    return folder / "run"


def run(program: Path, op: str, sizes: Sequence[int], inputs: Sequence[Tensor]) -> bytearray:
    data = b"".join(tensor.contiguous().numpy().tobytes() for tensor in inputs)
    done = subprocess.run([program, op, *map(str, sizes)], input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return bytearray(done.stdout)


def assert_within_pytorchs_own_error(actual: Tensor, own: Tensor, truth: Tensor) -> None:
    bound = 1.5 * contract.relative_error(own, truth) + contract.ULPS[HALF]
    assert contract.relative_error(actual, truth) <= bound


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 8, 8),
        (2, 3, 10, 200, 192),  # cluster of two, the second with a last piece of a chunk
        (1, 9, 6, 424, 104),  # no cluster: nine chunks, one after the other, in two places
        (1, 5, 5, 720, 184),  # sums over four groups of warps, in clusters of four
        (1, 3, 9, 392, 384),  # in clusters of eight, of which one block has two chunks
        (1, 256, 8, 56, 40),  # high tiles
    ],
)
def test_depthwise_linear(kernels: Path, shape: tuple[int, ...]) -> None:
    check_depthwise_linear(kernels, shape, depthwise_inputs(shape, HALF))


@pytest.mark.parametrize("shape", [(1, 4, 5, 56, 48), (1, 3, 9, 392, 96)])
def test_depthwise_linear_of_pixels_far_from_zero(kernels: Path, shape: tuple[int, ...]) -> None:
    """The mean over the channels is 20 times their deviation."""
    inputs = depthwise_inputs(shape, HALF)
    inputs[2] += 32
    check_depthwise_linear(kernels, shape, inputs)


def check_depthwise_linear(kernels: Path, shape: tuple[int, ...], inputs: Sequence[Tensor]) -> None:
    truth = ref.depthwise_linear(*[tensor.double() for tensor in inputs])
    own = ref.depthwise_linear_in(HALF, *inputs)
    answer = run(kernels, "depthwise_linear", shape, inputs)
    split = truth[0].numel() * HALF.itemsize
    h = torch.frombuffer(answer[:split], dtype=HALF).reshape(truth[0].shape)
    squares = torch.frombuffer(answer[split:], dtype=torch.float32).reshape(truth[1].shape)
    for actual, pytorch, exact in zip((h, squares), own, truth, strict=True):
        assert_within_pytorchs_own_error(actual, pytorch, exact)
    torch.testing.assert_close(squares.sum(1), h.float().square().sum((1, 2)))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 8, 8),
        (1, 13, 9, 200, 104),  # four tiles share the norms, the last of them one that no image has
        (2, 3, 3, 1000, 96),  # K in three pieces, a fourth block without one
        (1, 8, 9, 3072, 8),  # in eight
    ],
)
def test_grn_linear(kernels: Path, shape: tuple[int, ...]) -> None:
    inputs = grn_inputs(shape, HALF)
    truth, own = ref.grn_linear(*[tensor.double() for tensor in inputs]), ref.grn_linear_in(HALF, *inputs)
    batch, height, width, channels, outputs = shape
    sizes = (batch, height * width, channels, outputs, inputs[1].shape[1])
    y = torch.frombuffer(run(kernels, "grn_linear", sizes, inputs), dtype=HALF).reshape(truth.shape)
    assert_within_pytorchs_own_error(y, own, truth)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 2, 8, 1),
        (2, 3, 10, 96, 2),  # clusters of two and one
        (1, 3, 9, 104, 3),  # thread blocks without a part in the second half
        (1, 3, 3, 200, 1),  # sums of four blocks; one warpgroup multiplies, before it two or three
        (1, 9, 8, 200, 1),  # the squares of three tiles
        (1, 3, 2, 8, 6),  # the slots of the mail again
    ],
)
def test_convnext_stage(kernels: Path, shape: tuple[int, ...]) -> None:
    check_convnext_stage(kernels, shape, stage_inputs(shape, HALF))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 2, 16, 1),  # clusters of one, all taps in one piece of K
        (2, 3, 10, 96, 2),
        (1, 3, 9, 192, 1),  # of two, of which one has no taps
        (1, 3, 3, 256, 1),  # of four, the second with one tap of three
    ],
)
def test_convnext_stage_with_a_step(kernels: Path, shape: tuple[int, ...]) -> None:
    check_convnext_stage(kernels, shape, stage_inputs(shape, HALF, step=True))


def test_convnext_stage_of_pixels_far_from_zero(kernels: Path) -> None:
    shape = (1, 4, 5, 56, 1)
    inputs = stage_inputs(shape, HALF)
    inputs[2] += 32
    check_convnext_stage(kernels, shape, inputs)


def check_convnext_stage(kernels: Path, shape: tuple[int, ...], inputs: Sequence[Tensor]) -> None:
    truth, own = ref.convnext_stage(*[tensor.double() for tensor in inputs]), ref.convnext_stage_in(HALF, *inputs)
    op = "convnext_stage with a step" if len(inputs) > 8 else "convnext_stage"
    y = torch.frombuffer(run(kernels, op, shape, inputs), dtype=HALF).reshape(truth.shape)
    assert_within_pytorchs_own_error(y, own, truth)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 8),
        (2, 3, 17, 32),
        (1, 18, 9, 96),  # tiles of eight rows, three in a column
        (2, 5, 8, 192),  # of four
        (1, 3, 11, 320),  # of two
        (2, 2, 6, 768),  # of one, four columns
    ],
)
@pytest.mark.parametrize("mean", [0.0, 32.0])
def test_depthwise_norm(kernels: Path, shape: tuple[int, ...], mean: float) -> None:
    inputs = depthwise_inputs((*shape, 8), HALF)[:3]
    inputs[2] += mean
    truth = depthwise_norm_in(torch.float64, *[tensor.double() for tensor in inputs])
    a = torch.frombuffer(run(kernels, "depthwise_norm", (*shape, 0), inputs), dtype=HALF).reshape(truth.shape)
    assert contract.relative_error(a, truth) <= 1.01 * contract.relative_error(truth.half(), truth)  # rounded once


@pytest.mark.parametrize("shape", [(1, 1, 64), (2, 5, 384), (3, 2, 1536), (2, 1, 3072), (1, 40, 128)])
@pytest.mark.parametrize("threads", [128, 256])
def test_grn_factors(kernels: Path, shape: tuple[int, int, int], threads: int) -> None:
    batch, rows, depth = shape
    generator = torch.Generator().manual_seed(0)
    squares = torch.rand(batch, rows, depth, generator=generator)
    gamma = torch.randn(depth, generator=generator)
    answer = run(kernels, "grn_factors", (*shape, threads, 0), (squares, gamma))
    factors = torch.frombuffer(answer, dtype=torch.float32).reshape(batch, depth)
    torch.testing.assert_close(factors.double(), grn_factors(squares.double(), gamma.double()), rtol=2e-6, atol=2e-6)


def test_polynomial_gelu(kernels: Path) -> None:
    near, far = torch.linspace(-8, 8, 100_001), torch.tensor([0.0, 20.0, 1e3, 3e4, 1e38])
    v = torch.cat([near, far, -far])
    answer = torch.frombuffer(run(kernels, "gelu", (v.numel(), 0, 0, 0, 0), (v,)), dtype=torch.float32)
    truth = torch.nn.functional.gelu(v.double())
    assert (answer - truth).abs()[: near.numel()].max() < 4e-5
    assert torch.equal(answer[near.numel() :].double(), truth[near.numel() :])


@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, 2, 8, 8),
        (2, 9, 15, 88, 104),  # a last row and column that are left out, a padded K
        (1, 6, 8, 192, 96),  # two blocks add up
        (3, 5, 4, 296, 48),  # four
    ],
)
@pytest.mark.parametrize("mean", [1.0, 60.0])
def test_norm_downsample(kernels: Path, shape: tuple[int, ...], mean: float) -> None:
    inputs = downsample_inputs(shape, HALF, mean=mean)
    truth = ref.norm_downsample(*[tensor.double() for tensor in inputs])
    y = torch.frombuffer(run(kernels, "norm_downsample", shape, inputs), dtype=HALF).reshape(truth.shape)
    assert_within_pytorchs_own_error(y, ref.norm_downsample_in(HALF, *inputs), truth)


@pytest.mark.parametrize("shape", [(1, 1, 1, 8, 1), (2, 5, 9, 200, 130), (1, 9, 8, 768, 17)])
def test_pool_norm_linear(kernels: Path, shape: tuple[int, ...]) -> None:
    inputs = pool_inputs(shape, HALF)
    truth = ref.pool_norm_linear(*[tensor.double() for tensor in inputs])
    y = torch.frombuffer(run(kernels, "pool_norm_linear", shape, inputs), dtype=torch.float32).reshape(truth.shape)
    assert contract.relative_error(y, truth) < 1e-6


@pytest.mark.parametrize(
    "shape",
    [
        (1, 4, 4, 8),
        (2, 9, 13, 96),  # a last row and column that are left out
        (3, 21, 28, 40),  # the last block has patches of two pictures, and fewer than it could take
    ],
)
@pytest.mark.parametrize("as_bytes", [True, False])
def test_patch_norm(kernels: Path, shape: tuple[int, ...], as_bytes: bool) -> None:
    inputs = patch_inputs(shape, HALF, as_bytes=as_bytes)
    truth = ref.patch_norm(*[tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs])
    own = ref.patch_norm_in(HALF, *inputs)
    *picture, outputs = shape
    if as_bytes:
        answer = run(kernels, "patch_norm of bytes", (*picture, 3, outputs), inputs)
    else:
        planes = [inputs[0].permute(0, 3, 1, 2), *inputs[1:]]
        answer = run(kernels, "patch_norm of floats in planes", (*picture, 3, outputs), planes)
    assert_within_pytorchs_own_error(torch.frombuffer(answer, dtype=HALF).reshape(truth.shape), own, truth)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 16),  # half a step of K, of one depth
        (2, 3, 9, 31, 16),  # a group of one depth behind one of two; two tiles of pixels
        (1, 2, 5, 67, 144),  # nine steps: the first are used again
        (1, 5, 7, 6, 400),
    ],
)
@pytest.mark.parametrize("gap", [0, 24])
def test_occlusion_head(kernels: Path, shape: tuple[int, ...], gap: int) -> None:
    x, *rest = occlusion_inputs(shape, HALF, "cpu")
    truth = ref.occlusion_head(x.double(), *[tensor.double() for tensor in rest])
    own = ref.occlusion_head_in(HALF, x, *rest)
    buffer = torch.nn.functional.pad(x, (0, gap), value=float("nan"))
    answer = run(kernels, "occlusion_head of a slice" if gap else "occlusion_head", shape, [buffer, *rest])
    assert_within_pytorchs_own_error(torch.frombuffer(answer, dtype=torch.float32).reshape(truth.shape), own, truth)
