"""Decide whether a policy may take the champion's place; the flags are those of `celr-ray gate`.

On a cluster: ray job submit --working-dir . -- python jobs/gatekeeper.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["gate", *sys.argv[1:]]))
