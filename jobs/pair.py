"""Build the preference pairs of a run; the flags are those of `celr-ray pair`.

On a cluster: ray job submit --working-dir . -- python jobs/pair.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pair", *sys.argv[1:]]))
