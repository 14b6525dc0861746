"""`python -m gct_jax`."""

import sys

from gct_jax.cli import main

sys.exit(main())
