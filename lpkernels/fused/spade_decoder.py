"""G rebuilt for speed: statistics and SPADE in the convs' epilogues, upsampled planes never stored.

All ``mlp_shared`` convs of the middle blocks are one conv, whose slices feed the SPADEs. Each conv of these blocks but
the last goes with the SPADE behind it, in one op (``spade_blocks``), as fc does with the first block's first SPADE
(``conv_spade``). The ``mlp_shared`` convs of an up block are one conv on the small grid. Nearest upsampling
changes neither mean nor variance, so an up block's first norms use the statistics of the plane before it, which
``spade_conv`` reads at half size. The last block's hidden activations are those of a feature enlarged four times: where
the kernels can read them, they stay a grid of classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from lpkernels import ops, rewrites
from lpkernels.fused import _weights
from lpkernels.fused._layers import ConvAct, ConvImage, ConvSpade, SpadeBlocks, SpadeConv, SpadeShortcut, UpsampleConv
from lpkernels.models.blocks import SPADE, SPADEResnetBlock
from lpkernels.models.spade_generator import NUM_MIDDLE_BLOCKS, SPADEDecoder

NONE, RELU, LEAKY = 1.0, 0.0, 0.2
HIDDEN = SPADE.HIDDEN


class FusedSPADEUpBlock(nn.Module):
    """Nearest x2, then a residual block that may change the width.

    The shortcut's beta never appears: behind conv_s it is a 3x3 conv of the activations
    (``rewrites.merge_shortcut_beta``), and 3x3 is conv_1 too, with the same outputs. So norm_1 writes its answer next
    to the shortcut's activations, [norm_0 | norm_1 | norm_s | answer], and one conv of the last two is both. A grid of
    classes has other pixels than the answer: there the whole shortcut is one op, for widths that its kernel is made for
    (``ops.fuses_shortcut``), else that conv stands alone.

    Args:
        scale: the block's size over the feature's.
        negative_slope: of the activation after the block (1: none).
        classes: keep the hidden activations as a grid of classes; ``scale`` 4.
    """

    def __init__(
        self, baseline: SPADEResnetBlock, scale: int, negative_slope: float, dtype: torch.dtype, classes: bool = False
    ) -> None:
        super().__init__()
        norms = [baseline.norm_0, baseline.norm_1]
        conv_1 = _weights.plain(baseline.conv_1)
        self.norm_0 = _spade(baseline.norm_0, dtype, classes)
        self.conv_0 = ConvAct(_weights.plain(baseline.conv_0), NONE, dtype, winograd=not classes)
        self.norm_1 = _spade(baseline.norm_1, dtype, classes)
        self.middle = baseline.conv_0.out_channels
        self.norm_s: SpadeConv | None = None
        self.conv_s: ConvAct | None = None
        self.beta_s: ConvAct | None = None
        self.shortcut: SpadeShortcut | None = None
        if baseline.learned_shortcut:
            norms.append(baseline.norm_s)
            shortcut, _ = conv_s = _weights.plain(baseline.conv_s)
            gamma_s, beta_s = _weights.plain(baseline.norm_s.mlp_gamma), _weights.plain(baseline.norm_s.mlp_beta)
            if classes and ops.fuses_shortcut(dtype, HIDDEN, shortcut.shape[1], shortcut.shape[0]):
                self.shortcut = SpadeShortcut(conv_s, gamma_s, beta_s, dtype, classes)
            else:
                beta = rewrites.merge_shortcut_beta(shortcut, *beta_s)
                if classes:
                    self.beta_s = ConvAct(beta, NONE, dtype, classes)
                else:
                    conv_1 = torch.cat([beta[0], conv_1[0]], dim=1), beta[1] + conv_1[1]
                self.norm_s = SpadeConv(gamma_s, None, NONE, dtype, classes)
                self.conv_s = ConvAct(conv_s, NONE, dtype)
        self.conv_1 = ConvAct(conv_1, negative_slope, dtype, winograd=not classes)
        self.mlp_shared = UpsampleConv(_shared(norms), scale, dtype, classes)
        self.larger, self.hidden = rewrites.CLASSES if classes else scale, HIDDEN * len(norms)
        self.beside = self.middle if self.norm_s is not None and not classes else 0

    def forward(self, x: Tensor, stats: Tensor, feature: Tensor, want_stats: bool) -> tuple[Tensor, Tensor | None]:
        """x (B, H / 2, W / 2, C), its statistics, feature (B, H / scale, ...) -> (B, H, W, C') and its statistics."""
        batch, height, width, _ = feature.shape
        buffer = feature.new_empty(batch, height * self.larger, width * self.larger, self.hidden + self.beside)
        actv = self.mlp_shared(feature, out=buffer[..., : self.hidden])
        dx = self.norm_0(actv[..., :HIDDEN], x, stats)
        inner = self.conv_0.new_stats(dx)
        dx = self.conv_0(dx, stats=inner)
        outer = self.conv_1.new_stats(dx) if want_stats else None
        actv_1 = actv[..., HIDDEN : 2 * HIDDEN]
        if self.shortcut is not None:
            dx = self.norm_1(actv_1, dx, inner)
            return self.conv_1(dx, residual=self.shortcut(actv[..., 2 * HIDDEN :], x, stats), stats=outer), outer
        if self.norm_s is None or self.conv_s is None:
            return self.conv_1(self.norm_1(actv_1, dx, inner), residual=x, stats=outer), outer
        actv_s = actv[..., 2 * HIDDEN :]
        dx = self.norm_1(actv_1, dx, inner, out=buffer[..., self.hidden :] if self.beside else None)
        shortcut = self.conv_s(self.norm_s(actv_s, x, stats))
        if self.beta_s is not None:
            shortcut = self.beta_s(actv_s, residual=shortcut)
        else:
            dx = buffer[..., 2 * HIDDEN :]
        return self.conv_1(dx, residual=shortcut, stats=outer), outer


class FusedSPADEDecoder(nn.Module):
    """The SPADE decoder G from a baseline's weights, for one compute dtype; the baseline is left as it is.

    Args:
        baseline: in eval mode, float32 parameters; the layers are made on its device.
        dtype: of activations and weights: float16, bfloat16 or float32.
        classes: keep the last block's hidden activations as a grid of classes, which saves a third of its products but
            is slow without the kernels made for it. None: where those run on the baseline's device.
    """

    def __init__(self, baseline: SPADEDecoder, dtype: torch.dtype, classes: bool | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        if classes is None:
            classes = dtype == torch.float16 and _has_class_kernels(baseline)
        found = [baseline.get_submodule(f"G_middle_{i}") for i in range(NUM_MIDDLE_BLOCKS)]
        blocks = [block for block in found if isinstance(block, SPADEResnetBlock)]
        norms = [norm for block in blocks for norm in (block.norm_0, block.norm_1)]
        self.mlp_shared = ConvAct(_shared(norms), RELU, dtype)
        ((first, gamma, beta),) = _with_spades([baseline.fc], norms[:1])
        self.fc = ConvSpade(first, gamma, beta, LEAKY, dtype)
        *between, last = [conv for block in blocks for conv in (block.conv_0, block.conv_1)]
        self.middle = SpadeBlocks(_with_spades(between, norms[1:]), LEAKY, dtype)
        self.last = ConvAct(_weights.plain(last), NONE, dtype, winograd=True, together=True)
        self.up_0 = FusedSPADEUpBlock(baseline.up_0, 2, NONE, dtype)
        self.up_1 = FusedSPADEUpBlock(baseline.up_1, 4, LEAKY, dtype, classes)
        shuffled = isinstance(baseline.conv_img, nn.Sequential)
        conv = baseline.conv_img[0] if shuffled else baseline.conv_img  # type: ignore[index]
        upscale = baseline.conv_img[1].upscale_factor if shuffled else 1  # type: ignore[index]
        self.conv_img = ConvImage(_weights.plain(conv), upscale, dtype)

    @torch.no_grad()
    def forward(self, feature: Tensor, as_uint8: bool = False) -> Tensor:
        """Decode a warped feature.

        Args:
            feature: (B, H, W, C) channels-last, in the network's dtype.

        Returns:
            (B, 3, S, S') float32 in 0..1, S = 4 H * upscale; or (B, S, S', 3) uint8.
        """
        actv = self.mlp_shared(feature)
        x = feature.new_empty(*feature.shape[:-1], self.fc.bias.shape[0])
        dx = self.fc(feature, actv[..., :HIDDEN], y=x)
        x, dx = self.middle(x, dx, actv[..., HIDDEN:])
        stats = self.last.new_stats(dx)
        x = self.last(dx, residual=x, stats=stats)
        x, stats = self.up_0(x, stats, feature, want_stats=True)
        x, _ = self.up_1(x, stats, feature, want_stats=False)
        return self.conv_img(x, as_uint8)


def _has_class_kernels(baseline: SPADEDecoder) -> bool:
    """Whether all ops that read or write classes have their CUDA kernels for this network here."""
    device, widths = (
        baseline.fc.weight.device.type,
        (baseline.up_1.conv_0.in_channels, baseline.up_1.conv_1.out_channels),
    )
    names = ("conv_act", "spade_conv", "spade_shortcut", "upsample_conv")
    kernels = [ops.registry()[name].backends["cuda"] for name in names]
    return all(kernel.why_not(device) is None for kernel in kernels) and all(width % 32 == 0 for width in widths)


def _spade(norm: SPADE, dtype: torch.dtype, classes: bool) -> SpadeConv:
    gamma, beta = _weights.plain(norm.mlp_gamma), _weights.plain(norm.mlp_beta)
    return SpadeConv(gamma, beta, LEAKY, dtype, classes, winograd=not classes)


def _with_spades(
    convs: Sequence[nn.Module], norms: Sequence[SPADE]
) -> Iterator[tuple[_weights.Conv, _weights.Conv, _weights.Conv]]:
    """Each conv, and gamma's and beta's of the SPADE behind it."""
    for conv, norm in zip(convs, norms, strict=True):
        yield _weights.plain(conv), _weights.plain(norm.mlp_gamma), _weights.plain(norm.mlp_beta)


def _shared(norms: list[SPADE]) -> _weights.Conv:
    """The hidden convs of SPADEs that read the same feature, as one."""
    return rewrites.merge_convs(*(_weights.plain(norm.mlp_shared[0]) for norm in norms))
