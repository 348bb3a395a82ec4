"""``lpkernels animate``: a source picture moved by a driving video, motion template or picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lpkernels.cli.options import AUTO, add_model_options, face_box, load_model, numbers
from lpkernels.cli.progress import bar
from lpkernels.errors import InputError

if TYPE_CHECKING:
    from lpkernels.animate.retarget import MotionOptions
    from lpkernels.animate.source import SourceCrop

_EPILOG = """\
examples:
  lpkernels animate -s portrait.jpg -d clip.mp4 -o out.mp4 --weights pretrained_weights
  lpkernels animate -s portrait.jpg -d talking.pkl -o out.mp4 --weights KwaiVGI/LivePortrait --region exp
  lpkernels animate -s group.jpg --crop 420,80,512,512 -d clip.mp4 -o out.mp4 --weights pretrained_weights --paste-back
  lpkernels animate -s group.jpg --faces all -d clip.mp4 -o out.mp4 --weights pretrained_weights
  lpkernels animate -s photo.jpg --crop auto --paste-back -d clip.mp4 --driving-crop auto -o out.mp4 --weights DIR
  lpkernels animate -s portrait.jpg -d clip.mp4 -o out.mp4 --random-weights 0 --config small
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Register the command."""
    text = "Animate a source picture with the motion of a driving clip."
    parser = subparsers.add_parser("animate", help=text, description=text, epilog=_EPILOG)
    parser.set_defaults(run=run)
    files = parser.add_argument_group("files")
    files.add_argument("-s", "--source", type=Path, required=True, help="picture or video with one face")
    files.add_argument(
        "-d", "--driving", type=Path, required=True, help="video, motion template (.pkl, .safetensors) or picture"
    )
    files.add_argument(
        "-o", "--output", type=Path, required=True, help="file to write: .mp4, or a picture for a picture"
    )
    files.add_argument("--side-by-side", type=Path, metavar="FILE", help="also write all three pictures in one video")
    files.add_argument("--save-template", type=Path, metavar="FILE", help="also keep the driving motion (.safetensors)")
    files.add_argument("--no-audio", action="store_true", help="leave out the sound")
    files.add_argument("--overwrite", action="store_true", help="replace output files that exist")
    files.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    add_model_options(parser)
    _add_framing(parser)
    _add_motion(parser)


def _add_framing(parser: argparse.ArgumentParser) -> None:
    text = "Without a box the whole picture is squeezed into a square. 'auto' finds the largest face (lpkernels[face])."
    group = parser.add_argument_group("framing", text)
    text = "X,Y,W,H|auto"
    group.add_argument(
        "--crop",
        type=face_box,
        metavar=text,
        action="append",
        help="box of the source around the face; again for further faces of one picture, all pasted back",
    )
    group.add_argument(
        "--faces", choices=("largest", "all"), help="find faces in the source; all: each is animated and pasted back"
    )
    group.add_argument("--driving-crop", type=face_box, metavar=text, help="box of every driving frame around the face")
    group.add_argument(
        "--paste-back",
        action="store_true",
        help="put the animated square back into the whole source picture; in a video the last row or column of an odd"
        " side is repeated",
    )


def _add_motion(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("motion", "A --source-eye-ratio or --source-lip-ratio turns retargeting on.")
    group.add_argument("--absolute", action="store_true", help="take the driving motion itself, not its change")
    group.add_argument("--region", choices=("all", "exp", "pose", "lip", "eyes"), default="all", help="what may move")
    group.add_argument("--driving-multiplier", type=float, default=1.0, metavar="X", help="strength of the motion (1)")
    group.add_argument(
        "--driving-option",
        choices=("pose-friendly", "expression-friendly"),
        default="pose-friendly",
        help="which trade-off",
    )
    group.add_argument("--no-stitching", action="store_true", help="let the shoulders move along")
    group.add_argument("--smooth", action="store_true", help="take jitter out of the driving motion")
    group.add_argument("--eye-ratio", type=float, metavar="R", help="eye opening to hold (default: a template's)")
    group.add_argument("--lip-ratio", type=float, metavar="R", help="lip opening to hold (default: a template's)")
    pair = numbers(2, float, "left,right")
    group.add_argument(
        "--source-eye-ratio", type=pair, metavar="L,R", help="the source's eye openings, height by width"
    )
    group.add_argument("--source-lip-ratio", type=float, metavar="R", help="the source's lip opening, height by width")


def motion_options(args: argparse.Namespace) -> MotionOptions:
    """The MotionOptions that the command line describes; raises InputError for values out of range."""
    from lpkernels.animate.retarget import MotionOptions

    return MotionOptions(
        relative=not args.absolute,
        region=args.region,
        driving_multiplier=args.driving_multiplier,
        driving_option=args.driving_option,
        stitching=not args.no_stitching,
        eye_retargeting=args.eye_ratio is not None or args.source_eye_ratio is not None,
        lip_retargeting=args.lip_ratio is not None or args.source_lip_ratio is not None,
        source_eye_ratio=args.source_eye_ratio,
        source_lip_ratio=args.source_lip_ratio,
    )


def source_crop(args: argparse.Namespace) -> SourceCrop | None:
    """What the command line says about the source's faces; raises InputError where it says two things."""
    boxes = [box for box in args.crop or [] if box != AUTO]
    if AUTO in (args.crop or []) and (boxes or len(args.crop) > 1):
        raise InputError("--crop auto is the largest face alone: leave the other --crop out, or pass --faces all")
    if args.faces is not None and boxes:
        raise InputError("--faces finds the faces itself: leave --crop out")
    if args.faces == "all":
        return "all"
    if args.faces == "largest" or args.crop == [AUTO]:
        return "auto"
    return boxes if len(boxes) > 1 else boxes[0] if boxes else None


def check_files(args: argparse.Namespace) -> None:
    """Answer for every path before weights are read: inputs exist, outputs can be written and replace nothing."""
    from lpkernels.animate._files import existing_file
    from lpkernels.animate._outputs import Outputs
    from lpkernels.animate.face import check_face_finder
    from lpkernels.animate.image import is_image_path, is_video_path

    if isinstance(source_crop(args), str) or args.driving_crop == AUTO:
        check_face_finder()
    existing_file(args.source, "--source")
    existing_file(args.driving, "--driving")
    still = is_image_path(args.driving) and not is_video_path(args.source)
    outputs = Outputs(args.output, args.side_by_side, args.save_template, still=still)
    outputs.check(args.source, args.driving)
    for path in (args.output, args.side_by_side, args.save_template):
        if path is not None and path.exists() and not args.overwrite:
            raise InputError(f"{path} exists already; choose another name, or pass --overwrite")


def run(args: argparse.Namespace) -> int:
    """Animate, and print what was written."""
    check_files(args)
    crop = source_crop(args)
    options = motion_options(args)
    model = load_model(args)

    from lpkernels.animate.pipeline import animate_file

    with bar(args.output.name, args.quiet) as progress:
        result = animate_file(
            model,
            args.source,
            args.driving,
            args.output,
            options=options,
            crop=crop,
            driving_crop=args.driving_crop,
            paste_back=args.paste_back or crop == "all" or isinstance(crop, list),
            smooth=args.smooth,
            eye_ratio=args.eye_ratio,
            lip_ratio=args.lip_ratio,
            side_by_side=args.side_by_side,
            save_template=args.save_template,
            audio=not args.no_audio,
            progress=progress,
        )
    rate = result.frames / result.seconds
    print(f"{result.output}: {result.frames} frames in {result.seconds:.1f} s ({rate:.1f} a second)")
    for path in (result.side_by_side, result.template):
        if path is not None:
            print(path)
    return 0
