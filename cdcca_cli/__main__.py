"""`python -m cdcca_cli` is `cdcca`."""

import sys

from cdcca_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
