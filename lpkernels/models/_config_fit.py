"""What the sizes in a configuration must have in common, because one network reads what another writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lpkernels.errors import InputError

if TYPE_CHECKING:
    from lpkernels.models.config import LivePortraitConfig

TINY_DEPTHS = (3, 3, 9, 3)
TINY_DIMS = (96, 192, 384, 768)


def check_fit(config: LivePortraitConfig) -> None:
    """Raise InputError, naming both fields, unless all sizes fit together."""
    appearance, motion = config.appearance_feature_extractor, config.motion_extractor
    warp, generator, mlps = config.warping_module, config.spade_generator, config.stitching_retargeting_module
    dense, k = warp.dense_motion_params, motion.num_kp
    if motion.backbone not in ("convnextv2_tiny", "convnextv2"):
        raise InputError(f"motion_extractor.backbone must be convnextv2_tiny or convnextv2, got {motion.backbone!r}")
    if motion.backbone == "convnextv2_tiny" and (motion.depths, motion.dims) != (TINY_DEPTHS, TINY_DIMS):
        raise InputError("motion_extractor.backbone convnextv2_tiny has fixed depths and dims; write convnextv2")
    if appearance.reshape_depth < 2:
        raise InputError("appearance_feature_extractor.reshape_depth must be at least 2, got 1")
    if len(motion.depths) != 4 or len(motion.dims) != 4:
        raise InputError(f"motion_extractor.depths and dims must have four entries, got {motion.depths}, {motion.dims}")
    if generator.upscale not in (1, 2):
        raise InputError(f"spade_generator.upscale must be 1 or 2, got {generator.upscale}")
    volume_channels = appearance.reshape_channel * appearance.reshape_depth
    warped_channels = warp.block_expansion * 2**warp.num_down_blocks
    pairs = (
        ("appearance_feature_extractor.max_features", appearance.max_features, "channel * depth", volume_channels),
        ("warping_module.max_features", warp.max_features, "the volume's channel * depth", volume_channels),
        ("warping_module.reshape_channel", warp.reshape_channel, "the volume's channels", appearance.reshape_channel),
        ("dense_motion_params.reshape_depth", dense.reshape_depth, "the volume's depth", appearance.reshape_depth),
        ("warping_module.num_kp", warp.num_kp, "motion_extractor.num_kp", k),
        ("warping_module's output channels", warped_channels, "spade_generator's input", generator.feature_channels),
        ("stitching.input_size", mlps.stitching.input_size, "6 * num_kp", 6 * k),
        ("stitching.output_size", mlps.stitching.output_size, "3 * num_kp + 2", 3 * k + 2),
        ("eye.input_size", mlps.eye.input_size, "3 * num_kp + 3", 3 * k + 3),
        ("eye.output_size", mlps.eye.output_size, "3 * num_kp", 3 * k),
        ("lip.input_size", mlps.lip.input_size, "3 * num_kp + 2", 3 * k + 2),
        ("lip.output_size", mlps.lip.output_size, "3 * num_kp", 3 * k),
    )
    for name, came, other, expected in pairs:
        if came != expected:
            raise InputError(f"config: {name} must equal {other}, {expected}; got {came}")
    multiple = config.feature_stride * config.feature_multiple
    if config.image_size % multiple:
        raise InputError(f"config: image_size must be a multiple of {multiple} (down blocks), got {config.image_size}")
