"""`python -m clinkd`, and `torchrun ... -m clinkd` for several processes."""

import sys

from clinkd.cli import main

sys.exit(main())
