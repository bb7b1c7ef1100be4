"""HyperQueue: a local server and a worker, one job of COUNT tasks that run `true`. Prints tasks a second."""

import contextlib
import io
import json
import sys
import tempfile
import time

from hyperqueue import Job
from hyperqueue.cluster import LocalCluster, WorkerConfig


def main() -> None:
    count, cores = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="bench-hq-") as folder:
        cluster = LocalCluster(folder, WorkerConfig(cores=cores))
        client = cluster.client()
        job = Job(default_workdir=folder)
        for _ in range(count):
            job.program(["true"], stdout=None, stderr=None)
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            client.wait_for_jobs([client.submit(job)])
        took = time.perf_counter() - started
        cluster.stop()
    print(json.dumps({"tasks_per_second": count / took}))


main()
