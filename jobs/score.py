"""Ingest and score logs, or score a run again; the flags are those of `celr-ray score`.

On a cluster: ray job submit --working-dir . -- python jobs/score.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
