"""`python -m esd_core` is the command `esd`; torchrun starts it by that name."""

import sys

from .cli.main import main

sys.exit(main())
