"""`python -m esd_core.cli` is the command `esd`."""

import sys

from .main import main

sys.exit(main())
