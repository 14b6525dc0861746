"""`python -m gct_jax`."""

import sys

try:
    from gct_jax.cli import main
except KeyboardInterrupt:  # before the command line could listen
    sys.exit(130)

sys.exit(main())
