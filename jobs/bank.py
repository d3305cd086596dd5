"""Make an outcome bank from recorded runs; the arguments are those of `celr-ray bank`.

On a cluster: ray job submit --working-dir . -- python jobs/bank.py build --logs … --out …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["bank", *sys.argv[1:]]))
