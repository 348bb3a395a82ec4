"""The exceptions that carry a message a user can act on."""

from __future__ import annotations


class LpkernelsError(RuntimeError):
    """Something failed, and the one-line message says what and what to do (exit code 1 on the command line)."""


class InputError(LpkernelsError, ValueError):
    """What the user gave is wrong: a path, a file's content, an option's value (exit code 2 on the command line)."""


class BackendError(LpkernelsError):
    """No backend of an op can run here; the message holds each backend's reason."""
