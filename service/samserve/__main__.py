"""The entry point of `python -m samserve`, which is the `samserve` command."""

import sys

from samserve.cli.main import main

sys.exit(main())
