"""What Python starts for the package: the command ``spatialflow``."""

import sys

from spatialflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
