"""The inside of the sandbox: what `celr_ray.core.sandbox` starts as a bare interpreter of its own.

    launch      reads source and tests from stdin, makes namespaces, starts supervisor and worker
    supervisor  watches the worker from outside: time, output, folder, verdict; never runs an answer's code
    worker      gives up every right it does not need, runs the answer, then its tests
    hook        the worker's audit hook: names forbidden acts and ends the run
    kernel      Landlock, seccomp, namespaces, capabilities and rlimits through ctypes
    syscalls    the system calls that an answer may make

These modules import each other and the standard library only, and little of that: they start for every check.
"""
