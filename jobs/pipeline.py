"""Logs in, judged and paired training data out; the flags are those of `celr-ray pipeline`.

On a cluster: ray job submit --working-dir . -- python jobs/pipeline.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]]))
