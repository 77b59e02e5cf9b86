#!/usr/bin/env python
"""Speed of SpatialFlow beside Detectron2's Panoptic FPN, see ``spatialflow.tools.benchmark``.

python tools/benchmark.py [--device cpu|cuda] [--json-out F] [--markdown F] [--quick]
"""

from spatialflow.tools.benchmark.__main__ import main

if __name__ == "__main__":
    main()
