"""What the sandbox is tried with: sources as a model might write them.

CANARY, PORT, UNIX and PID stand for a file, a port, a socket and a process outside the sandbox. Each attack is bounded,
should the sandbox be broken: at most 128 processes that end by themselves, memory touched bit by bit, signals that
the tests catch or that are only asked about (0), files that the tests made.
"""

from pathlib import Path

from celr_ray.core import sandbox

FORBIDDEN = {
    "fork bomb": ("process_limit", "import os, time\nfor _ in range(7): os.fork()\ntime.sleep(1)"),
    "double fork": (
        "process_limit",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\n"
        "        open(CANARY, 'w').write('late')\n    os._exit(0)",
    ),
    "subprocess": ("process_limit", "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''], check=True)"),
    "system": ("process_limit", "import os\nassert os.system('true') == 0"),
    "spawn": ("process_limit", "import os, sys\nos.posix_spawn('/bin/true', ['true'], {})"),
    "exec": ("process_limit", "import os\nos.execv('/bin/true', ['true'])"),
    "read a system file": ("read_outside", "open('/etc/passwd').read()"),
    "read a file": ("read_outside", "open(CANARY).read()"),
    "read the repository": ("read_outside", f"open({str(Path(sandbox.__file__))!r}).read()"),
    "read with os.open": ("read_outside", "import os\nos.read(os.open(CANARY, os.O_RDONLY), 9)"),
    "read through a link": ("read_outside", "import os\nos.symlink(CANARY, 'x')\nopen('x').read()"),
    "read from elsewhere": ("read_outside", "import os\nos.chdir(os.path.dirname(CANARY))\nopen('canary').read()"),
    "read a process": ("read_outside", "open('/proc/self/environ').read()"),
    "list a folder": ("read_outside", "import os\nos.listdir(os.path.dirname(CANARY))"),
    "write": ("write_outside", "open(CANARY, 'w').write('harm')"),
    "append": ("write_outside", "open(CANARY, 'a').write('harm')"),
    "create": ("write_outside", "open(CANARY + '.new', 'x')"),
    "remove": ("write_outside", "import os\nos.remove(CANARY)"),
    "rename": ("write_outside", "import os\nos.rename(CANARY, CANARY + '.new')"),
    "take in": ("write_outside", "import os\nos.rename(CANARY, 'mine')"),
    "hard link": ("write_outside", "import os\nos.link(CANARY, 'mine')"),
    "truncate": ("write_outside", "import os\nos.truncate(CANARY, 0)"),
    "chmod": ("write_outside", "import os\nos.chmod(CANARY, 0o777)"),
    "utime": ("write_outside", "import os\nos.utime(CANARY, (1, 1))"),
    "mkdir": ("write_outside", "import os\nos.mkdir(CANARY + '.new')"),
    "database": ("write_outside", "import sqlite3\nsqlite3.connect(CANARY + '.new').execute('create table t (x)')"),
    "inet": ("network", "import socket\nsocket.create_connection(('127.0.0.1', PORT))"),
    "listen": ("network", "import socket\nsocket.create_server(('127.0.0.1', 0))"),
    "resolve": ("network", "import socket\nsocket.getaddrinfo('example.org', 80)[0]"),
    "unix": ("network", "import socket\nsocket.socket(socket.AF_UNIX).connect(UNIX)"),
    "abstract": ("network", "import socket\nsocket.socket(socket.AF_UNIX).connect(f'\\0celr-{PID}')"),
    "http": ("network", "import urllib.request\nurllib.request.urlopen(f'http://127.0.0.1:{PORT}')"),
    "signal": ("signal", "import os, signal\nos.kill(PID, signal.SIGUSR1)"),
    "signal to the parent": ("signal", "import os, signal\nos.kill(os.getppid(), 0)"),
    "signal to all": ("signal", "import os\nos.kill(-1, 0)"),
    "signal to a group": ("signal", "import os\nos.killpg(os.getpgid(0) or 1, 0)"),
}


REFUSED = {
    "memory": "import ctypes\nctypes.string_at(0)",
    "limits of others": "import resource\nresource.prlimit(PID, resource.RLIMIT_CORE, (0, 0))",
    "limits raised": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "owner of a pipe": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, PID)",
    "file flags": "import fcntl, os\nfcntl.ioctl(open('x', 'w'), 0x40086602, b'\\0' * 8)",
    "change root": "import os\nos.chroot('.')",
    "change user": "import os\nos.setuid(12345)",
    "priority": "import os\nos.nice(-5)",
    "device": "import os, stat\nos.mknod('x', stat.S_IFBLK | 0o600, os.makedev(254, 0))",
}


LIMITS = {
    "endless loop": ({"time_limit"}, "while True: pass"),
    "sleep": ({"time_limit"}, "import time\ntime.sleep(60)"),
    "endless loop that catches": (
        {"time_limit"},
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    ),
    "threads that spin": (
        {"time_limit"},
        (
            "import threading\ndef spin():\n    while True: pass\n"
            "for _ in range(4): threading.Thread(target=spin).start()\nspin()"
        ),
    ),
    "allocation": ({"failed"}, "blocks = [bytearray(1 << 20) for _ in range(10_240)]"),
    "mapping": ({"failed"}, "import mmap\nmmap.mmap(-1, 10 << 30)"),
    "thread bomb": (
        {"failed"},
        "import threading, time\nfor _ in range(500): threading.Thread(target=time.sleep, args=(2,)).start()",
    ),
    "output": ({"output_limit"}, "for _ in range(200): print('x' * 1_000_000)"),
    "one large file": ({"failed"}, "open('x', 'wb').write(bytes(128 << 20))"),
    "many files": (
        {"failed", "folder_limit"},
        "import time\nfor i in range(64):\n    open(str(i), 'wb').write(bytes(8 << 20))\n    time.sleep(.02)",
    ),
    "many names": ({"failed", "folder_limit"}, "import time\nfor i in range(5_000): open(str(i), 'w')\ntime.sleep(1)"),
    "crash": (
        {"crashed", "failed"},
        "import sys\nsys.setrecursionlimit(10**9)\nx = []\nfor _ in range(10**6): x = [x]\nrepr(x)",
    ),
}


CHEATS = {
    "exit": "import sys\nsys.exit(0)",
    "hard exit": "import os\nos._exit(0)",
    "kill itself": "import os\nos.kill(os.getpid(), 9)",
    "exit in the call": "def f():\n    import sys\n    sys.exit(0)",
    "hard exit in the call": "def f():\n    import os\n    os._exit(0)",
    "interrupt": "raise KeyboardInterrupt",
    "printed markers": "print('V 0 1 1'); print('PASSED'); print('S')\nf = lambda: 2",
    "written markers": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'S\\nX broken\\nV ' + b'0' * 32 + b' 1 1\\n')\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "read the tests": (
        "import os\ndata = b''\nfor fd in (0, *range(3, 64)):\n    try:\n        os.set_blocking(fd, False)\n"
        "        data += os.read(fd, 9999)\n    except OSError: pass\nf = lambda: 1 if data else 2"
    ),
    "everything closed": "import os\nos.closerange(0, 64)\ndef f(): return 1",
    "builtins": "import builtins\nbuiltins.all = lambda _: True\nbuiltins.AssertionError = Warning\ndef f(): return 2",
    "names": "def all(_): return True\ndef len(_): return 1\ndef f(): return 2",
    "hidden tests": "import sys\ndef f():\n    sys.modules['solution'].__dict__['TESTS'] = None\n    return 2",
    "import": "import sys\nsys.modules['builtins'] = None\ndef f(): return 2",
    "error that fails": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\ndef f(): raise E",
    "no code": "",
    "syntax": "def f(:",
    "NUL": "\0",
    "surrogate": "'\ud800'",
}


HONEST = {
    "asyncio": "import asyncio\nasync def g(): await asyncio.sleep(0); return 1\ndef f(): return asyncio.run(g())",
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f():\n"
        "    with ThreadPoolExecutor(8) as p: return sum(p.map(int, '1000'))"
    ),
    "files": (
        "import tempfile, pathlib, shutil\ndef f():\n"
        "    d = tempfile.mkdtemp(); p = pathlib.Path(d, 'x'); p.write_text('1'); r = int(p.read_text())\n"
        "    shutil.rmtree(d); return r"
    ),
    "library": (
        "import collections, dataclasses, decimal, enum, json, logging, re, typing, unittest.mock, zoneinfo, sqlite3\n"
        "P = collections.namedtuple('P', 'x')\nzoneinfo.ZoneInfo('UTC')\ndef f(): return P(1).x"
    ),
    "main block": "if __name__ == '__main__':\n    input()\ndef f(): return 1",
    "alarm": (
        "import signal, time\ndef f():\n"
        "    signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "    signal.setitimer(signal.ITIMER_REAL, .01); time.sleep(.02); return 1"
    ),
    "noise": "print('x' * 10_000)\ndef f(): return 1",
    "home": "import os, getpass\ngetpass.getuser()\ndef f(): return int(os.path.expanduser('~') == os.getcwd())",
    "stderr": (
        "import traceback, warnings\ndef f():\n    try: 1 / 0\n"
        "    except ZeroDivisionError: traceback.print_exc()\n    warnings.warn('x')\n    return 1"
    ),
}
