"""`python -m cfrestore` is the command `cfrestore`."""

import sys

from cfrestore.cli import main

if __name__ == "__main__":
    sys.exit(main())
