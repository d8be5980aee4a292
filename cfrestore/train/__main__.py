"""`python -m cfrestore.train`."""

import sys

from cfrestore.train.command import main

sys.exit(main(sys.argv[1:]))
