"""Submit the audit of a folder: ``python -m examples.submit FOLDER --job ID``.

An earlier job with that id is deleted.
"""

import argparse
import contextlib
import sys

from celery_statemanager import JobNotFound
from examples.app import states
from examples.audit import audit


def main() -> int:
    """Submit the audit. Return 2 if the folder or an option is invalid."""
    parser = argparse.ArgumentParser(prog="submit", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--job", required=True, help="id of the job")
    parser.add_argument("--shards", type=int, default=16, help="rows of the job (default: 16)")
    options = parser.parse_args()
    with contextlib.suppress(JobNotFound):
        states.job(options.job).delete()
    try:
        job = audit(options.folder, options.shards, options.job)
    except (OSError, ValueError) as error:
        print(f"submit: {error}", file=sys.stderr)
        return 2
    print(f"submitted {job.id}: {options.folder} in {job.num_tasks} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
