"""Where live pictures go: a window, where there is a screen, and a virtual camera."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

from lpkernels.errors import InputError, LpkernelsError

if TYPE_CHECKING:
    from lpkernels.animate.image import Frame


class Preview:
    """A window that shows the newest picture. It belongs to the thread that made it, which must call ``update``.

    Attributes:
        closed: whether the user closed it, or pressed Escape or q.

    Raises:
        ImportError: there is no tkinter, or Pillow lacks its part for it.
        tkinter.TclError: there is no screen.
    """

    def __init__(self, title: str) -> None:
        import tkinter

        from PIL import Image, ImageTk

        self._image, self._photo_image = Image, ImageTk.PhotoImage
        self._photo: Any = None
        self._size = (0, 0)
        self._keys: list[str] = []
        self.closed = False
        self._root: Any = tkinter.Tk()
        self._root.title(title)
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        self._root.bind("<Key>", self._pressed)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()

    def show(self, picture: Frame) -> None:
        """Show a picture, at its own size, from the next ``update`` on."""
        image = self._image.fromarray(picture)
        if self._photo is None or self._size != image.size:
            self._size = image.size
            self._photo = self._photo_image(image)
            self._label.configure(image=self._photo)
        else:
            self._photo.paste(image)

    def update(self) -> list[str]:
        """Let the window draw, and return the characters that were typed into it since the last call."""
        if not self.closed:
            self._root.update()
        keys, self._keys = self._keys, []
        return keys

    def close(self) -> None:
        """Take the window away; safe to call twice."""
        if self._root is not None:
            self._root.destroy()
            self._root = None

    def _close(self) -> None:
        self.closed = True

    def _pressed(self, event: Any) -> None:
        if event.keysym in ("Escape", "q"):
            self.closed = True
        elif event.char:
            self._keys.append(event.char)


def open_preview(title: str) -> Preview | None:
    """A window; None, with a line on stderr that says why, where there can be none."""
    try:
        return Preview(title)
    except ImportError as error:
        cause = f"{error} (Debian, Ubuntu: apt install python3-tk)"
    except Exception as error:
        if type(error).__name__ != "TclError":  # its name is tkinter's, which may not be imported here
            raise
        no_display = sys.platform == "linux" and not os.environ.get("DISPLAY")
        cause = "there is no screen ($DISPLAY is not set)" if no_display else str(error)
    print(f"no preview window: {cause}; going on without", file=sys.stderr)
    return None


def check_virtual_camera() -> Any:
    """The module pyvirtualcam; InputError that says how to install it where it is missing."""
    try:
        import pyvirtualcam
    except ImportError:
        raise InputError("--virtual-camera needs pyvirtualcam: pip install 'lpkernels[live]'") from None
    return pyvirtualcam


class VirtualCamera:
    """A camera that other programs can choose, through pyvirtualcam.

    Attributes:
        device: what other programs call it.

    Raises:
        InputError: pyvirtualcam is not installed.
        LpkernelsError: the system has no virtual camera.
    """

    def __init__(self, width: int, height: int, fps: float) -> None:
        module = check_virtual_camera()
        try:
            self._camera: Any = module.Camera(width=width, height=height, fps=fps)
        except (RuntimeError, OSError) as error:
            hint = {"linux": "sudo modprobe v4l2loopback exclusive_caps=1"}.get(sys.platform, "install OBS Studio")
            raise LpkernelsError(f"--virtual-camera: {' '.join(str(error).split())}; {hint}") from None
        self.device = str(self._camera.device)

    def show(self, picture: Frame) -> None:
        """Send a picture, uint8 RGB."""
        self._camera.send(picture)

    def close(self) -> None:
        """Give the camera back."""
        with contextlib.suppress(RuntimeError):
            self._camera.close()
