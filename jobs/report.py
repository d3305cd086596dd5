"""Write the HTML report of a run; the flags are those of `celr-ray report`.

On a cluster: ray job submit --working-dir . -- python jobs/report.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
