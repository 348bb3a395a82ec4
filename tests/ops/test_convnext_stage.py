"""convnext_stage: every backend against the published blocks in float64, and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lpkernels import ops, ref
from lpkernels.models.convnextv2 import Block
from lpkernels.ops import _convnext
from tests.ops import contract, convnext

SMALL = [(1, 3, 5, 16, 2), (2, 9, 2, 10, 1), (1, 1, 1, 5, 3)]  # batch, height, width, channels, blocks
PUBLISHED = [(1, *stage, depth) for stage, depth in zip(convnext.STAGES, (3, 3, 9, 3), strict=True)]
ODD = [
    (1, 7, 9, 200, 3),  # one kernel, whose thread blocks do not all have a part in either half
    (1, 30, 21, 96, 2),
    (1, 17, 16, 200, 5),  # six tiles, whose squares go to all by way of norms; the slots of the mail again
    (1, 9, 8, 104, 8),
    (2, 5, 3, 8, 2),
    (3, 48, 40, 96, 3),  # more than a GPU holds at once: image by image
    (1, 80, 80, 384, 1),  # one image is: two kernels a block
    (2, 7, 9, 768, 2),
]
MANY = [  # images, more than are taken one after the other; three kernels a block
    *[(images, *stage, 2) for images in (4, 5, 8) for stage in convnext.STAGES],
    (5, 7, 9, 32, 3),  # both of the buffers in turn; tiles of one image
    (5, 3, 7, 64, 2),  # of two, of which the last has one
    (4, 1, 1, 128, 1),
    (6, 13, 130, 96, 1),  # rows of more than a tile
    (7, 20, 17, 160, 2),
    (4, 9, 10, 704, 1),
    (9, 33, 5, 384, 1),
]
HALVES = [torch.float16, torch.bfloat16]  # Triton; the CUDA kernels are of float16
NAMES = ("x", "taps", "taps_bias", "wide_weight", "wide_bias", "gamma", "weight", "bias")
NAMES_OF_STEP = ("step_weight", "step_bias")
STEPS = [  # batch, height, width, channels, blocks behind the step
    *PUBLISHED[1:],
    (1, 7, 9, 256, 3),  # pieces of K of three taps, of which the second has one
    (1, 30, 21, 96, 2),  # all taps in one
    (2, 7, 9, 768, 2),
    (3, 17, 16, 192, 2),  # image by image
    (1, 9, 8, 400, 2),  # a kernel of its own: 384 is no multiple of its channels
    (1, 80, 80, 384, 1),
    *[(8, *stage, 1) for stage in convnext.STAGES[1:]],
]


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", step: bool = False) -> list[Tensor]:
    """Blocks four times as wide as their channels; with a step from half of these, which leaves out a last row."""
    random, (batch, height, width, channels, blocks) = convnext.Random(), shape
    wide, half = 4 * channels, channels // 2
    tensors = [
        random.normal(batch, 2 * height + 1, 2 * width, half)
        if step
        else random.normal(batch, height, width, channels),
        random.normal(blocks, 7, 7, channels, scale=0.2),
        random.normal(blocks, channels),
        random.normal(blocks, wide, channels, scale=1.5 * channels**-0.5),
        random.normal(blocks, wide),
        random.normal(blocks, wide),
        random.normal(blocks, channels, wide, scale=wide**-0.5),
        random.normal(blocks, channels),
    ]
    if step:
        tensors += [random.normal(channels, 2, 2, half, scale=0.5 * half**-0.5), random.normal(channels)]
    return convnext.lowered(tensors, (0, 3, 6, 8), dtype, device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("step", [False, True])
def test_matches_reference(shape: tuple[int, ...], step: bool, device: str) -> None:
    inputs = make_inputs(shape, torch.float32, device, step)
    functions = convnext.tupled(ops.convnext_stage), convnext.tupled(ref.convnext_stage)
    contract.assert_close_to_reference(*functions, inputs, convnext.exact(inputs))


@pytest.mark.usefixtures("poisoned", "interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("step", [False, True])
def test_triton_matches_reference(dtype: torch.dtype, step: bool) -> None:
    inputs = make_inputs(SMALL[0], dtype, step=step)
    with ops.use_backend("triton"):
        convnext.check_half(ops.convnext_stage, ref.convnext_stage_in, inputs, dtype)


def test_reference_is_the_published_blocks() -> None:
    blocks = [Block(12).double() for _ in range(3)]
    for block in blocks:
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    expected = x = torch.randn(2, 12, 5, 9, dtype=torch.float64)
    for block in blocks:
        expected = block(expected)

    def stacked(get: object) -> Tensor:
        return torch.stack([get(block) for block in blocks])  # type: ignore[operator]

    actual = ref.convnext_stage(
        x.permute(0, 2, 3, 1),
        stacked(lambda block: block.dwconv.weight.squeeze(1).movedim(0, -1)),
        stacked(lambda block: block.dwconv.bias),
        stacked(lambda block: block.pwconv1.weight * block.norm.weight),
        stacked(lambda block: block.pwconv1.bias + block.pwconv1.weight @ block.norm.bias),
        stacked(lambda block: block.grn.gamma.flatten()),
        stacked(lambda block: block.pwconv2.weight),
        stacked(lambda block: block.pwconv2.bias + block.pwconv2.weight @ block.grn.beta.flatten()),
    )
    assert contract.relative_error(actual.permute(0, 3, 1, 2), expected) < 1e-12


def test_slice_of_a_wider_buffer(device: str) -> None:
    inputs = make_inputs((2, 3, 5, 16, 2), torch.float32, device)
    buffer = inputs[0].new_full((2, 3, 5, 40), float("nan"))
    buffer[..., 8:24] = inputs[0]
    contract.assert_same([ops.convnext_stage(buffer[..., 8:24], *inputs[1:])], [ops.convnext_stage(*inputs)])


def test_x_is_left_alone(device: str) -> None:
    inputs = make_inputs((1, 3, 5, 16, 2), torch.float32, device)
    before = inputs[0].clone()
    ops.convnext_stage(*inputs)
    assert torch.equal(inputs[0], before)


@pytest.mark.parametrize("step", [False, True])
def test_opcheck_and_compile(step: bool, device: str) -> None:
    inputs = make_inputs((1, 3, 5, 8, 2), torch.float32, device, step)
    contract.check_compile(convnext.tupled(ops.convnext_stage), inputs)


@pytest.mark.usefixtures("interpreted")
def test_triton_opcheck_and_compile() -> None:
    inputs = make_inputs((1, 3, 2, 8, 1), torch.float32, step=True)
    convnext.check_triton(ops.convnext_stage, inputs, torch.ops.lpkernels.convnext_stage_triton)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", [*PUBLISHED, *ODD, *MANY])
def test_half_within_pytorchs_own_error(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.float16, "cuda")
    with convnext.only("convnext_stage", "cuda", inputs):
        convnext.check_half(ops.convnext_stage, ref.convnext_stage_in, inputs, torch.float16)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("shape", STEPS)
def test_half_with_a_step(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.float16, "cuda", step=True)
    with convnext.only("convnext_stage", "cuda", inputs):
        convnext.check_half(ops.convnext_stage, ref.convnext_stage_in, inputs, torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "wide"), [(96, 56), (192, 104), (384, 48), (760, 64)])
def test_blocks_that_are_not_wide(channels: int, wide: int) -> None:
    """A thread block has more channels to convolve than at once."""
    x, taps, taps_bias, wide_weight, wide_bias, gamma, weight, bias = make_inputs(
        (1, 6, 9, channels, 2), torch.float16, "cuda"
    )
    expand = [wide_weight[:, :wide].contiguous(), wide_bias[:, :wide].contiguous()]
    project = [gamma[:, :wide].contiguous(), weight[:, :, :wide].contiguous(), bias]
    inputs = [x, taps, taps_bias, *expand, *project]
    with convnext.only("convnext_stage", "cuda", inputs):
        convnext.check_half(ops.convnext_stage, ref.convnext_stage_in, inputs, torch.float16)


@pytest.mark.gpu
def test_images_do_not_depend_on_each_other() -> None:
    """Of many images, each has the answer it has among others: sums and factors are its own."""
    inputs = make_inputs((6, 8, 8, 64, 2), torch.float16, "cuda")
    with convnext.only("convnext_stage", "cuda", inputs):
        together = ops.convnext_stage(*inputs)
        order = [3, 5, 0, 4]
        assert torch.equal(ops.convnext_stage(inputs[0][order].contiguous(), *inputs[1:]), together[order])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*[(1, *stage, 1) for stage in convnext.STAGES], (4, 16, 16, 96, 1)])
def test_pixels_far_from_zero(shape: tuple[int, ...]) -> None:
    """What the depthwise convolution gives has a mean over its channels of 20 times their deviation."""
    inputs = make_inputs(shape, torch.float16, "cuda")
    inputs[2] += 32
    with convnext.only("convnext_stage", "cuda", inputs):
        convnext.check_half(ops.convnext_stage, ref.convnext_stage_in, inputs, torch.float16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALVES)
def test_triton_within_pytorchs_own_error(dtype: torch.dtype) -> None:
    inputs = make_inputs((4, *PUBLISHED[3][1:]), dtype, "cuda")
    with convnext.only("convnext_stage", "triton", inputs):
        convnext.check_half(ops.convnext_stage, ref.convnext_stage_in, inputs, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*PUBLISHED, *ODD[2:4], *ODD[5:7], *MANY[-8:]])
def test_repeatable_streams_and_graphs(shape: tuple[int, ...]) -> None:
    convnext.check_gpu(ops.convnext_stage, make_inputs(shape, torch.float16, "cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", STEPS[:7])
def test_repeatable_streams_and_graphs_with_a_step(shape: tuple[int, ...]) -> None:
    convnext.check_gpu(ops.convnext_stage, make_inputs(shape, torch.float16, "cuda", step=True))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*PUBLISHED, ODD[2]])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "all bits set"])
def test_what_is_no_number_spreads_and_nothing_hangs(shape: tuple[int, ...], value: float | str) -> None:
    """Blocks wait for words that are not "all bits set", which is also a number that is none."""
    inputs = make_inputs(shape, torch.float16, "cuda")
    if value == "all bits set":
        inputs[0].view(torch.int16)[0, 0, 0] = -1
    else:
        inputs[0][0, 0, 0] = value
    with convnext.only("convnext_stage", "cuda", inputs):
        assert ops.convnext_stage(*inputs).isnan().any()


@pytest.mark.gpu
def test_on_two_streams_at_once() -> None:
    """Each wants the whole GPU: one waits for the other, and neither for ever."""
    inputs = make_inputs(PUBLISHED[2], torch.float16, "cuda")
    expected = ops.convnext_stage(*inputs)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    answers = []
    for _ in range(50):
        for stream in streams:
            with torch.cuda.stream(stream):
                answers.append(ops.convnext_stage(*inputs))
    torch.cuda.synchronize()
    assert all(torch.equal(answer, expected) for answer in answers)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 5, 9, 96, 2), (4, 5, 9, 64, 2)])
def test_opcheck_of_the_cuda_kernel(shape: tuple[int, ...]) -> None:
    inputs = make_inputs(shape, torch.float16, "cuda", step=True)
    with convnext.only("convnext_stage", "cuda", inputs):
        contract.check_opcheck(torch.ops.lpkernels.convnext_stage, inputs)
        contract.check_compile(convnext.tupled(ops.convnext_stage), inputs)


@pytest.mark.parametrize("channels", [12, 776])
def test_what_the_cuda_kernel_refuses(channels: int) -> None:
    refuses = ops.registry()["convnext_stage"].backends["cuda"].refuses
    assert refuses(convnext.signature(make_inputs((1, 2, 2, 16, 1), torch.float16))) is None
    wrong = convnext.signature(make_inputs((1, 2, 2, channels, 1), torch.float16))
    assert f"{channels}, {4 * channels}" in str(refuses(wrong))
    assert "float32" in str(refuses(convnext.signature(make_inputs((1, 2, 2, 16, 1), torch.float32))))


def test_what_the_cuda_kernels_of_many_images_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = ops.registry()["convnext_stage"].backends["cuda"].refuses

    def reason(images: int, channels: int) -> str | None:
        return refuses(convnext.signature(make_inputs((images, 2, 2, channels, 1), torch.float16)))

    monkeypatch.setattr(_convnext, "no_hopper", lambda: None)
    assert reason(4, 32) is None
    assert "multiples of 32 and 64, at most 768 and 3072; got torch.float16, 48, 192" in str(reason(4, 48))
    monkeypatch.setattr(_convnext, "no_hopper", lambda: "needs a Hopper GPU")
    assert reason(3, 32) is None
    assert "at most 3 images on this GPU, for more it needs a Hopper GPU; got 4" in str(reason(4, 32))


def test_gradients_are_refused() -> None:
    convnext.check_gradient_is_refused(ops.convnext_stage, make_inputs(SMALL[0], torch.float32), "convnext_stage")


def bad(**changed: object) -> dict[str, object]:
    return {**dict(zip(NAMES, make_inputs((1, 3, 5, 8, 2), torch.float32), strict=True)), **changed}


def bad_with_a_step(**changed: object) -> dict[str, object]:
    inputs = make_inputs((1, 3, 5, 8, 2), torch.float32, step=True)
    return {**dict(zip((*NAMES, *NAMES_OF_STEP), inputs, strict=True)), **changed}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (bad(x=1), TypeError, "x must be a torch.Tensor, got int"),
        (bad(x=torch.zeros(1, 3, 8)), ValueError, "x must have shape"),
        (bad(taps=torch.zeros(7, 7, 8)), ValueError, r"taps must have shape \(N, 7, 7, 8\)"),
        (bad(taps=torch.zeros(0, 7, 7, 8)), ValueError, "taps must"),
        (bad(taps=torch.zeros(2, 7, 7, 8).half()), TypeError, "taps must have dtype float32"),
        (bad(taps_bias=torch.zeros(3, 8)), ValueError, r"taps_bias must have shape \(2, 8\)"),
        (bad(wide_weight=torch.zeros(2, 32, 9)), ValueError, r"wide_weight must have shape \(2, K, 8\)"),
        (bad(wide_weight=torch.zeros(2, 32, 8).half()), TypeError, "wide_weight must have the dtype of x"),
        (bad(wide_bias=torch.zeros(2, 8)), ValueError, r"wide_bias must have shape \(2, 32\)"),
        (bad(gamma=torch.zeros(32)), ValueError, r"gamma must have shape \(2, 32\)"),
        (bad(weight=torch.zeros(2, 32, 8)), ValueError, r"weight must have shape \(2, 8, 32\)"),
        (bad(weight=torch.zeros(2, 32, 8).mT), ValueError, "weight must be contiguous"),
        (bad(bias=torch.zeros(2, 8, device="meta")), ValueError, "bias must be on the device of x"),
        (bad(step_bias=torch.zeros(8)), ValueError, "step_bias is given without step_weight"),
        (bad(step_weight=torch.zeros(8, 2, 2, 8)), ValueError, "step_weight is given without step_bias"),
        (bad_with_a_step(x=torch.zeros(1, 1, 5, 4)), ValueError, "at least 2 pixels high and wide for a step"),
        (
            bad_with_a_step(step_weight=torch.zeros(8, 2, 2, 8)),
            ValueError,
            r"step_weight must have shape \(8, 2, 2, 4\)",
        ),
        (
            bad_with_a_step(step_weight=torch.zeros(8, 2, 2, 4).half()),
            TypeError,
            "step_weight must have the dtype of x",
        ),
        (bad_with_a_step(step_bias=torch.zeros(4)), ValueError, r"step_bias must have shape \(8\)"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.convnext_stage(**arguments)
