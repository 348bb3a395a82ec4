"""``python -m lpkernels``: the command line without the script."""

import sys

from lpkernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
