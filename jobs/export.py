"""Write the training files of a run; the flags are those of `celr-ray export`.

On a cluster: ray job submit --working-dir . -- python jobs/export.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
