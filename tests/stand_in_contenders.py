"""Contenders for the tests of `benchmarks`: what a worker meets, without a framework."""

import sys
import time

import numpy as np

from benchmarks.worker import Step


def step(job):
    """Hands out the job's numbers, and signs a log; sleeps or dies from the given call on."""
    calls = []

    def launch():
        calls.append(None)
        if "log" in job:
            with open(job["log"], "a") as log:
                log.write(job["signature"])
        if len(calls) > job.get("calls_before_sleep", 99):
            time.sleep(60)
        if len(calls) > job.get("calls_before_death", 99):
            print("the last words", file=sys.stderr)
            sys.stderr.flush()
            import os

            os._exit(3)
        print("noise on standard output must not disturb the protocol")
        return np.array(job["numbers"])

    return Step(launch=launch, outputs=launch, facts={"device": "none"})


def missing(job):
    import no_such_package  # noqa: F401
