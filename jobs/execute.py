"""Run tasks on model tiers, cheap first; the flags are those of `celr-ray execute`.

On a cluster: ray job submit --working-dir . -- python jobs/execute.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["execute", *sys.argv[1:]]))
