"""``python -m benchmarks``: everything, with figures and the HTML report; other arguments as ``lpkernels bench``."""

from __future__ import annotations

import sys

from lpkernels.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["bench", *(sys.argv[1:] or ["all", "--plot", "--html"])]))
