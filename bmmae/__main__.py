"""`python -m bmmae`: the command line."""

import sys

from bmmae.cli import main

if __name__ == "__main__":
    sys.exit(main())
