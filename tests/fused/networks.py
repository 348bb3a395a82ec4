"""Models and inputs that the tests of the fused networks share, and the ops in float64."""

from __future__ import annotations

import copy
import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lpkernels import _winograd, ops, ref
from lpkernels.models import LivePortrait, LivePortraitConfig

SIDE = 16  # of the tiny model's feature volume


@functools.cache
def tiny(
    *, occlusion: bool = True, expansion: int = 8, compress: int = 2, upscale: int = 2, out_channels: int = 16
) -> LivePortrait:
    """A tiny random model on the CPU, made once for each choice: change nothing in it."""
    config = LivePortraitConfig.tiny()
    dense = dataclasses.replace(config.warping_module.dense_motion_params, block_expansion=expansion, compress=compress)
    warping = dataclasses.replace(config.warping_module, estimate_occlusion_map=occlusion, dense_motion_params=dense)
    spade = dataclasses.replace(config.spade_generator, upscale=upscale, out_channels=out_channels)
    return LivePortrait.random(0, dataclasses.replace(config, warping_module=warping, spade_generator=spade))


def volume(batch: int = 1, seed: int = 0, side: int = SIDE) -> Tensor:
    return torch.randn(batch, 8, 8, side, side, generator=torch.Generator().manual_seed(seed))


def keypoints(batch: int = 1) -> tuple[Tensor, Tensor]:
    """Source and driving keypoints, (B, 21, 3)."""
    generator = torch.Generator().manual_seed(1)
    source = 0.4 * torch.randn(batch, 21, 3, generator=generator)
    return source, source + 0.05 * torch.randn(batch, 21, 3, generator=generator)


def feature(batch: int = 1, channels: int = 64, side: int = SIDE) -> Tensor:
    """A warped feature, NCHW."""
    return 0.5 * torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(2))


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous()


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """||actual - exact|| / ||exact||; NaN never passes a comparison."""
    assert actual.shape == exact.shape
    exact = exact.double().cpu()
    return ((actual.double().cpu() - exact).norm() / exact.norm()).item()


def in_double(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).double()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def shares_products_of_rows(network: nn.Module) -> set[str]:
    """The layers of a network whose weight is ``pack_winograd_weight``'s."""
    return {name.removesuffix(".weight") for name, tensor in network.named_buffers() if _is_winograd(name, tensor)}


def _is_winograd(name: str, tensor: Tensor) -> bool:
    return name.endswith(".weight") and tensor.shape[-1] in (16, 64) and _winograd.is_tiles(tensor.shape)


def exact_ops(winograd: bool = False) -> SimpleNamespace:
    """The ops' references behind the ops' Python arguments: they take float64, which the ops refuse.

    ``winograd``: layers that ask for weights whose products rows share get them, for channels they can be made of.
    """

    def written(function: Any) -> Any:
        def run(out: Tensor | None = None, **arguments: Any) -> Tensor:
            answer = function(**arguments)
            return answer if out is None else out.copy_(answer)

        return run

    def conv_act(stats: Tensor | None = None, **arguments: Any) -> Tensor:
        answer = written(ref.conv_act)(**arguments)
        if stats is not None:
            stats.copy_(ref.stats_like(stats, answer))
        return answer

    def conv_spade(y: Tensor | None, out: None, **arguments: Any) -> Tensor:
        answer, before = ref.conv_spade(**arguments)
        if y is not None:
            y.copy_(before)
        return answer

    def flow_warp(want_deformation: bool, **arguments: Any) -> tuple[Tensor, Tensor]:
        return ref.flow_warp(**arguments, want_deformation=want_deformation)

    def sparse_motion(out: Tensor, **arguments: Any) -> Tensor:
        answer = ref.sparse_motion(*arguments.values())
        out.zero_()[..., : answer.shape[-1]] = answer
        return out

    return SimpleNamespace(
        **{name: getattr(ops, name) for name in ops.__all__ if name.startswith("pack_")},
        stat_parts=ops.stat_parts,
        shares_products=ops.shares_products,
        pairs_rows=ops.pairs_rows,
        packs_together=ops.packs_together,
        takes_winograd=lambda op, device_type, dtype, channels, *_, **__: winograd and channels % 16 == 0,
        conv_act=conv_act,
        conv_spade=conv_spade,
        conv_pool=written(ref.conv_pool),
        upsample_conv=written(ref.upsample_conv),
        spade_blocks=ref.spade_blocks,
        spade_conv=written(ref.spade_conv),
        spade_shortcut=written(ref.spade_shortcut),
        conv_img=ref.conv_img,
        mask_conv3d=lambda **arguments: ref.mask_conv3d(**arguments).permute(0, 4, 1, 2, 3),
        occlusion_head=ref.occlusion_head,
        flow_warp=flow_warp,
        sparse_motion=sparse_motion,
        background_sample=ref.background_sample,
    )
