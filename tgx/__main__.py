"""`python -m tgx` is the command `tgx`."""

import sys

from tgx.cli import main

if __name__ == "__main__":
    sys.exit(main())
