"""Blocks that the networks share: coordinate grids, 2D and 3D convolution blocks, normalisations, SPADE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_coordinate_grid(spatial_size: tuple[int, int, int], ref: Tensor) -> Tensor:
    """Normalised coordinates of every voxel: (D, H, W, 3) in the dtype and on the device of ``ref``.

    The last axis is (x, y, z): x to the right, y down, z inwards, each from -1 at the first voxel's centre to 1 at the
    last one's (corners aligned).
    """
    z, y, x = (2 * (torch.arange(n, dtype=ref.dtype, device=ref.device) / (n - 1)) - 1 for n in spatial_size)
    zz, yy, xx = torch.meshgrid(z, y, x, indexing="ij")
    return torch.stack([xx, yy, zz], dim=-1)


def kp2gaussian(kp: Tensor, spatial_size: tuple[int, int, int], kp_variance: float) -> Tensor:
    """Gaussian of variance ``kp_variance`` around each keypoint: (B, K, 3) -> (B, K, D, H, W), 1 at the keypoint."""
    grid = make_coordinate_grid(spatial_size, kp)
    offset = grid - kp[:, :, None, None, None, :]
    return torch.exp(-0.5 * (offset**2).sum(-1) / kp_variance)


class SameBlock2d(nn.Module):
    """conv 3x3, BatchNorm, ReLU (or LeakyReLU 0.01): (B, Cin, H, W) -> (B, Cout, H, W)."""

    def __init__(self, in_features: int, out_features: int, *, lrelu: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_features, out_features, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(out_features)
        self.ac = nn.LeakyReLU() if lrelu else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.ac(self.norm(self.conv(x)))


class DownBlock2d(nn.Module):
    """conv 3x3, BatchNorm, ReLU, 2x2 average pool: (B, Cin, H, W) -> (B, Cout, H/2, W/2)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_features, out_features, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(out_features)
        self.pool = nn.AvgPool2d(kernel_size=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.norm(self.conv(x))))


class DownBlock3d(nn.Module):
    """conv 3x3x3, BatchNorm, ReLU, average pool in the plane: (B, Cin, D, H, W) -> (B, Cout, D, H/2, W/2)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_features, out_features, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm3d(out_features)
        self.pool = nn.AvgPool3d(kernel_size=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.norm(self.conv(x))))


class UpBlock3d(nn.Module):
    """Nearest upsample in the plane, conv 3x3x3, BatchNorm, ReLU: (B, Cin, D, H, W) -> (B, Cout, D, 2H, 2W)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_features, out_features, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm3d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(F.interpolate(x, scale_factor=(1, 2, 2)))))


class ResBlock3d(nn.Module):
    """Pre-activation residual block, twice (BatchNorm, ReLU, conv 3x3x3); the shape stays."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(features, features, kernel_size=3, padding=1)
        self.conv2 = nn.Conv3d(features, features, kernel_size=3, padding=1)
        self.norm1 = nn.BatchNorm3d(features)
        self.norm2 = nn.BatchNorm3d(features)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        out = self.conv2(F.relu(self.norm2(out)))
        return out + x


class Encoder(nn.Module):
    """The way down of the hourglass: returns the input and the output of every down block, widest last."""

    def __init__(self, block_expansion: int, in_features: int, num_blocks: int, max_features: int) -> None:
        super().__init__()
        widths = [in_features, *(min(max_features, block_expansion * 2 ** (i + 1)) for i in range(num_blocks))]
        self.down_blocks = nn.ModuleList(DownBlock3d(widths[i], widths[i + 1]) for i in range(num_blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        outs = [x]
        for block in self.down_blocks:
            outs.append(block(outs[-1]))
        return outs


class Decoder(nn.Module):
    """The way up of the hourglass: each up block's output is concatenated with the encoder's at that size."""

    def __init__(self, block_expansion: int, in_features: int, num_blocks: int, max_features: int) -> None:
        super().__init__()
        blocks = []
        for i in reversed(range(num_blocks)):
            skip = 1 if i == num_blocks - 1 else 2
            width_in = skip * min(max_features, block_expansion * 2 ** (i + 1))
            blocks.append(UpBlock3d(width_in, min(max_features, block_expansion * 2**i)))
        self.up_blocks = nn.ModuleList(blocks)
        self.out_filters = block_expansion + in_features
        self.conv = nn.Conv3d(self.out_filters, self.out_filters, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm3d(self.out_filters)

    def forward(self, outs: list[Tensor]) -> Tensor:
        out = outs[-1]
        for block, skip in zip(self.up_blocks, reversed(outs[:-1]), strict=True):
            out = torch.cat([block(out), skip], dim=1)
        return F.relu(self.norm(self.conv(out)))


class Hourglass(nn.Module):
    """(B, Cin, D, H, W) -> (B, block_expansion + Cin, D, H, W); H and W must be multiples of 2**num_blocks."""

    def __init__(self, block_expansion: int, in_features: int, num_blocks: int, max_features: int) -> None:
        super().__init__()
        self.encoder = Encoder(block_expansion, in_features, num_blocks, max_features)
        self.decoder = Decoder(block_expansion, in_features, num_blocks, max_features)
        self.out_filters = self.decoder.out_filters

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class SpectralConv2d(nn.Conv2d):
    """Conv2d whose weight is ``weight_orig`` divided by its spectral norm, u . (W v), at every forward.

    The checkpoints hold the singular vectors u and v (``weight_u``, ``weight_v``) rather than the divided weight. W is
    ``weight_orig`` flattened to (out, in * kh * kw). Inference only: u and v are never iterated further.
    """

    weight_orig: nn.Parameter
    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, padding: int = 0, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=padding, bias=bias)
        weight = self.weight
        del self.weight
        self.register_parameter("weight_orig", nn.Parameter(weight.detach()))
        for name, length in (("weight_u", out_channels), ("weight_v", weight[0].numel())):
            self.register_buffer(name, weight.new_full((length,), length**-0.5))  # of length 1

    def normalized_weight(self) -> Tensor:
        """``weight_orig`` / sigma, the weight that the convolution uses."""
        sigma = (self.weight_u * torch.mv(self.weight_orig.flatten(1), self.weight_v)).sum()
        return self.weight_orig / sigma

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return self._conv_forward(input, self.normalized_weight(), self.bias)


class SPADE(nn.Module):
    """Instance norm whose scale and shift are convolved from ``segmap``: n * (1 + gamma) + beta."""

    HIDDEN = 128

    def __init__(self, norm_nc: int, label_nc: int) -> None:
        super().__init__()
        self.param_free_norm = nn.InstanceNorm2d(norm_nc, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, self.HIDDEN, kernel_size=3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(self.HIDDEN, norm_nc, kernel_size=3, padding=1)
        self.mlp_beta = nn.Conv2d(self.HIDDEN, norm_nc, kernel_size=3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        normalized = self.param_free_norm(x)
        actv = self.mlp_shared(F.interpolate(segmap, size=x.shape[2:], mode="nearest"))
        return normalized * (1 + self.mlp_gamma(actv)) + self.mlp_beta(actv)


class SPADEResnetBlock(nn.Module):
    """Residual block, twice (SPADE, LeakyReLU 0.2, conv 3x3); a change of width gets a SPADE'd 1x1 shortcut."""

    def __init__(self, fin: int, fout: int, label_nc: int) -> None:
        super().__init__()
        fmiddle = min(fin, fout)
        self.learned_shortcut = fin != fout
        self.conv_0 = SpectralConv2d(fin, fmiddle, kernel_size=3, padding=1)
        self.conv_1 = SpectralConv2d(fmiddle, fout, kernel_size=3, padding=1)
        if self.learned_shortcut:
            self.conv_s = SpectralConv2d(fin, fout, kernel_size=1, bias=False)
        self.norm_0 = SPADE(fin, label_nc)
        self.norm_1 = SPADE(fmiddle, label_nc)
        if self.learned_shortcut:
            self.norm_s = SPADE(fin, label_nc)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, seg)) if self.learned_shortcut else x
        dx = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 0.2))
        dx = self.conv_1(F.leaky_relu(self.norm_1(dx, seg), 0.2))
        return shortcut + dx
