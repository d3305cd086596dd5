"""A server of OpenAI's chat API whose answers take a fixed time and no computing: latencies like live models'.

It answers sums. The model's name says how good it is: `cheap` is right on about half of the questions, `strong` on nine
of ten, always the same ones. Made for tests and benchmarks of scheduling; nothing here measures a model.

    python benchmarks/sleeping_engine.py --seconds 0.2
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_RIGHT_PERCENT = {"cheap": 50, "strong": 90}
_SUM = re.compile(r"What is (\d+) \+ (\d+)\?")
_TOKENS = {"prompt_tokens": 20, "completion_tokens": 5}


class SleepingEngine(ThreadingHTTPServer):
    """Serves on 127.0.0.1 in a thread until it is closed."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, seconds: float) -> None:
        """Start.

        Args:
            seconds: what each answer takes.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seconds = seconds
        self.n_requests = 0
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""

    def close(self) -> None:
        """Stop."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SleepingEngine

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.n_requests += 1
        time.sleep(self.server.seconds)
        text = _answer(body["model"], body["messages"][-1]["content"])
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        data = json.dumps({"choices": [choice], "usage": _TOKENS}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _answer(model: str, question: str) -> str:
    a, b = map(int, _SUM.findall(question)[0])
    is_right = zlib.crc32(f"{model} {a} {b}".encode()) % 100 < _RIGHT_PERCENT[model]
    return f"Answer: {a + b if is_right else a + b + 1}"


def write_suite(folder: Path, url: str, n_tasks: int, *, budget_usd: float = 0.01) -> tuple[Path, Path]:
    """Write a file of sums and the ladder of the two models; returns both paths.

    Args:
        folder: where to.
        url: of the server.
        n_tasks: tasks.
        budget_usd: of each.
    """
    tasks = [
        {
            "task_id": f"sum/{number:04d}",
            "prompt": f"What is {number} + {number % 7}? End with a line 'Answer: <number>'.",
            "checker": {"kind": "numeric", "answer": number + number % 7},
            "difficulty": number % 10 / 10,
            "budget_usd": budget_usd,
        }
        for number in range(n_tasks)
    ]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    tiers = [
        {
            "name": name,
            "engine": "openai",
            "model": name,
            "base_url": url,
            "input_usd_per_mtok": price,
            "output_usd_per_mtok": 4 * price,
            "context_window": 2000,
            "max_output_tokens": 40,
            "concurrency": 1,
        }
        for name, price in (("cheap", 0.1), ("strong", 1.0))
    ]
    (folder / "tiers.yaml").write_text(json.dumps({"tiers": tiers}))
    return folder / "tasks.jsonl", folder / "tiers.yaml"


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="what an answer takes")
    engine = SleepingEngine(parser.parse_args().seconds)
    print(engine.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
