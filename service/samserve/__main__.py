"""`python -m samserve` is `samserve`."""

import sys

from samserve.cli.main import main

sys.exit(main())
