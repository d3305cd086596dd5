"""List, show, promote and roll back policies of the registry; the arguments are those of `celr-ray policy`.

On a cluster: ray job submit --working-dir . -- python jobs/policy.py promote NAME@VERSION --evidence … --registry …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["policy", *sys.argv[1:]]))
