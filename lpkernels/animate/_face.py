"""The drawing of one head in one pose.

The head is an ellipsoid in front of the viewer. Every feature has a place on it (longitude, latitude); a pose turns the
ellipsoid, and each feature is drawn where it then lies, narrowed by how much it faces away.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, int, int]
Point = tuple[float, float]
_CENTRE = (0.5, 0.45)  # centre, in picture widths
_RADII = (0.205, 0.265)


@dataclass(frozen=True)
class Look:
    """The colours of one person."""

    skin: Color = (236, 188, 160)
    hair: Color = (74, 48, 36)
    iris: Color = (70, 110, 120)
    lips: Color = (188, 84, 84)
    shirt: Color = (52, 92, 130)
    background: Color = (206, 220, 224)


@dataclass(frozen=True)
class Pose:
    """Head pose in degrees (yaw: right of the picture, pitch: up, roll: clockwise), openings of eyes and mouth 0..1."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    eyes: float = 1.0
    mouth: float = 0.0


class Head:
    """One head in one pose, drawn onto a transparent layer (before roll)."""

    def __init__(self, layer: Image.Image, pose: Pose, look: Look) -> None:
        self.layer, self.pose, self.look, self.side = layer, pose, look, layer.width
        self.ink = ImageDraw.Draw(layer)
        self.turn, self.nod = math.radians(pose.yaw), math.radians(pose.pitch)

    def place(self, longitude: float, latitude: float, out: float = 1.0) -> tuple[float, float, float]:
        """Pixel x and y of a point of the ellipsoid (degrees right and up of the nose), and cos of its angle away."""
        angle, height = math.radians(longitude) + self.turn, math.radians(latitude)
        x, y, z = math.sin(angle) * math.cos(height), math.sin(height), math.cos(angle) * math.cos(height)
        y, z = y * math.cos(self.nod) + z * math.sin(self.nod), z * math.cos(self.nod) - y * math.sin(self.nod)
        facing = math.cos(angle)
        return (_CENTRE[0] + out * x * _RADII[0]) * self.side, (_CENTRE[1] - out * y * _RADII[1]) * self.side, facing

    def ellipse(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """Centre in pixels, half axes in picture widths."""
        a, b = width * self.side, height * self.side
        self.ink.ellipse([x - a, y - b, x + a, y + b], fill=(*color, 255))

    def line(self, points: list[Point], width: float, color: Color) -> None:
        """A stroke with round ends through points in pixels."""
        self.ink.line(points, fill=(*color, 255), width=max(1, round(width * self.side)), joint="curve")
        for x, y in (points[0], points[-1]):
            self.ellipse(x, y, width / 2, width / 2, color)

    def draw(self) -> None:
        """Back to front."""
        x, y = _CENTRE[0] * self.side, _CENTRE[1] * self.side
        self._hair_behind(x, y)
        for where in (-90.0, 90.0):
            self._ear(where, in_front=False)
        self.ellipse(x, y, *_RADII, self.look.skin)
        self._blush()
        for where in (-24.0, 24.0):
            self._eye(where)
            self._brow(where)
        self._nose()
        self._mouth()
        self._fringe(x, y)
        for where in (-90.0, 90.0):
            self._ear(where, in_front=True)

    def _hair_behind(self, x: float, y: float) -> None:
        self.ellipse(x - 0.03 * math.sin(self.turn) * self.side, y - 0.035 * self.side, 0.232, 0.272, self.look.hair)

    def _ear(self, where: float, in_front: bool) -> None:
        """The ear turned towards the viewer lies over the face, the other behind it."""
        x, y, facing = self.place(where, -4, 1.02)
        if in_front != (facing > 0.05) or facing < -0.35:
            return
        width = 0.026 + 0.012 * max(facing, 0.0)
        self.ellipse(x, y, width, 0.05, shade(self.look.skin, 0.94))
        self.ellipse(x, y, width * 0.5, 0.028, shade(self.look.skin, 0.82))

    def _blush(self) -> None:
        cheeks = Image.new("L", self.layer.size, 0)
        ink = ImageDraw.Draw(cheeks)
        for where in (-36.0, 36.0):
            x, y, facing = self.place(where, -20)
            a, b = 0.045 * max(facing, 0.15) * self.side, 0.032 * self.side
            ink.ellipse([x - a, y - b, x + a, y + b], fill=70)
        cheeks = cheeks.filter(ImageFilter.GaussianBlur(0.014 * self.side))
        alpha = self.layer.getchannel("A")
        self.layer.paste(Image.new("RGBA", self.layer.size, (*self.look.lips, 255)), (0, 0), cheeks)
        self.layer.putalpha(alpha)

    def _eye(self, where: float) -> None:
        x, y, facing = self.place(where, 8)
        width, opening = 0.044 * max(facing, 0.2), 0.027 * self.pose.eyes
        lid = shade(self.look.skin, 0.62)
        if opening < 0.004:
            self._arc(x, y, width, 0.008, lid, 0.008)
            return
        self.ellipse(x, y, width, opening, (250, 249, 246))
        look_x = x + 0.012 * math.sin(self.turn) * self.side
        look_y = y - 0.006 * math.sin(self.nod) * self.side
        self._iris(x, y, width, opening, look_x, look_y)
        self._arc(x, y, width, -opening, lid, 0.008)

    def _iris(self, x: float, y: float, width: float, opening: float, look_x: float, look_y: float) -> None:
        """Iris, pupil and glint, seen through the opening of the lids only."""
        eye = Image.new("RGBA", self.layer.size, (250, 249, 246, 255))
        ink = ImageDraw.Draw(eye)
        for radius, color in ((0.0195, self.look.iris), (0.010, (22, 20, 22))):
            r = radius * self.side
            narrow = r * max(min(width / 0.044, 1.0), 0.4)
            ink.ellipse([look_x - narrow, look_y - r, look_x + narrow, look_y + r], fill=(*color, 255))
        glint = 0.0045 * self.side
        centre = (look_x + 0.006 * self.side, look_y - 0.007 * self.side)
        ink.ellipse(
            [centre[0] - glint, centre[1] - glint, centre[0] + glint, centre[1] + glint], fill=(255, 255, 255, 255)
        )
        seen = Image.new("L", self.layer.size, 0)
        a, b = width * self.side, opening * self.side
        ImageDraw.Draw(seen).ellipse([x - a, y - b, x + a, y + b], fill=255)
        self.layer.paste(eye, (0, 0), seen)

    def _arc(self, x: float, y: float, width: float, rise: float, color: Color, thickness: float) -> None:
        """Half an ellipse: below the centre for a positive ``rise``, above it for a negative one."""
        angles = [math.pi * step / 16 for step in range(17)]
        points = [(x - width * self.side * math.cos(angle), y + rise * self.side * math.sin(angle)) for angle in angles]
        self.line(points, thickness, color)

    def _brow(self, where: float) -> None:
        inner, middle, outer = (self.place(math.copysign(a, where), b) for a, b in ((13.0, 21), (25.0, 25), (38.0, 20)))
        lift = 0.012 * self.pose.mouth * self.side
        ends = [(x, y - lift) for x, y, _ in (inner, middle, outer)]
        self.line(_curve(*ends), 0.013, self.look.hair)

    def _nose(self) -> None:
        bridge, tip = self.place(0, 6), self.place(0, -12, 1.12)
        side = math.copysign(1, self.pose.yaw) if self.pose.yaw else 1
        wing = self.place(-9 * side, -15, 1.03)
        shadow = shade(self.look.skin, 0.78)
        self.line([bridge[:2], tip[:2], wing[:2]], 0.009, shadow)

    def _mouth(self) -> None:
        left, right, middle = self.place(-17, -33), self.place(17, -33), self.place(0, -34, 1.02)
        x, y = (left[0] + right[0]) / 2 * 0.4 + middle[0] * 0.6, middle[1] + 0.015 * self.pose.mouth * self.side
        width, opening = (right[0] - left[0]) / 2 / self.side, 0.052 * self.pose.mouth
        if opening < 0.006:
            self._arc(x, y - 0.008 * self.side, width * 1.15, 0.018, self.look.lips, 0.016)
            return
        self.ellipse(x, y, width * 1.08, opening + 0.014, self.look.lips)
        self.ellipse(x, y, width * 0.9, opening, (70, 26, 30))
        if opening > 0.02:
            self.ellipse(x, y - opening * 0.62 * self.side, width * 0.6, opening * 0.22, (246, 244, 240))
            self.ellipse(x, y + opening * 0.62 * self.side, width * 0.5, opening * 0.3, (196, 92, 96))

    def _fringe(self, x: float, y: float) -> None:
        """The hair over the forehead: the head's outline above a hairline that turns with the head."""
        hair = Image.new("L", self.layer.size, 0)
        ink = ImageDraw.Draw(hair)
        a, b = 0.217 * self.side, 0.28 * self.side
        ink.ellipse([x - a, y - b, x + a, y + b], fill=255)
        shown = [longitude for longitude in range(-88, 89, 2) if self.seen(longitude)]
        face = [self.place(longitude, _hairline(longitude))[:2] for longitude in shown]
        far = 2 * self.side
        ink.polygon([(-far, face[0][1]), *face, (far, face[-1][1]), (far, far), (-far, far)], fill=0)
        self.layer.paste(Image.new("RGBA", self.layer.size, (*self.look.hair, 255)), (0, 0), hair)

    def seen(self, longitude: float) -> bool:
        """Whether a meridian lies on the viewer's side."""
        return math.cos(math.radians(longitude) + self.turn) > 0


def shade(color: Color, factor: float) -> Color:
    red, green, blue = (min(255, round(channel * factor)) for channel in color)
    return (red, green, blue)


def bump(phase: float, centre: float, width: float) -> float:
    distance = abs(phase - centre) / width
    return 0.5 + 0.5 * math.cos(math.pi * distance) if distance < 1 else 0.0


def _hairline(longitude: float) -> float:
    """Latitude of the hair's edge in degrees: high over the forehead with a parting, low before the ears."""
    return -6 + 50 * math.cos(math.radians(longitude)) ** 0.6 - 7 * bump(longitude, 14, 16)


def _curve(start: Point, control: Point, end: Point) -> list[Point]:
    """Points of a quadratic Bezier curve that passes through ``control`` half way."""
    points = []
    for step in range(13):
        t = step / 12
        weights = ((1 - t) * (1 - 2 * t), 4 * t * (1 - t), t * (2 * t - 1))
        x, y = (sum(w * p[axis] for w, p in zip(weights, (start, control, end), strict=True)) for axis in (0, 1))
        points.append((x, y))
    return points
