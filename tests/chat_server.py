"""A real HTTP server for tests that speaks OpenAI's chat API; the user's message says how it behaves.

`MODE words…` with MODE one of: echo, slow (no answer until the server stops), flaky (500 once), broken (always 500),
busy (always 429), drop (the connection closes), cut (damaged JSON), html, empty (no choices), text-count (usage of a
wrong type), uncounted (no usage), refusal, silent (no content), logprobs, long (400, context), odd (400), moderated
(403), quota (429 without credit), together (waits until PARTIES such requests are there).
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "good-key"
MODEL = "tiny"
PARTIES = 4

_ERRORS = {
    "broken": (500, "it broke", None),
    "busy": (429, "slow down", "rate_limit_exceeded"),
    "quota": (429, "you exceeded your current quota", "insufficient_quota"),
    "long": (400, "this model's maximum context length is 8 tokens", None),
    "odd": (400, "what is this?", None),
    "moderated": (403, "your input was flagged", None),
}


class ChatServer(ThreadingHTTPServer):
    """Serves `/v1/chat/completions` on 127.0.0.1 in a thread, until it is closed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.parties = threading.Barrier(PARTIES)
        self.bodies: list[dict[str, Any]] = []
        """Bodies of all requests."""
        self.seen: Counter[str] = Counter()
        """Requests with each user message."""
        self.in_flight = self.most_in_flight = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop serving."""
        self.stopped.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer one request."""
        length = int(self.headers["Content-Length"])
        content = self.rfile.read(length)
        if len(content) < length:  # the client went away while it sent
            self.close_connection = True
            return
        body = json.loads(content)
        text = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.seen[text] += 1
            self.server.in_flight += 1
            self.server.most_in_flight = max(self.server.most_in_flight, self.server.in_flight)
        try:
            self._answer(body, text, self.server.seen[text])
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def _answer(self, body: dict[str, Any], text: str, n_seen: int) -> None:
        mode = text.split(" ")[0]
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self._send_error(401, f"wrong key: {self.headers['Authorization']}", "invalid_api_key")
        elif self.path != "/v1/chat/completions" or body["model"] != MODEL:
            self._send_error(404, f"no model {body['model']} at {self.path}", "model_not_found")
        elif mode in _ERRORS or (mode == "flaky" and n_seen == 1):
            self._send_error(*_ERRORS.get(mode, (500, "once", None)))
        elif mode == "slow":
            self.server.stopped.wait(60)
        elif mode == "drop":
            self.close_connection = True
        elif mode == "cut":
            self._send(200, b'{"choices": [{"message"')
        elif mode == "html":
            self._send(200, b"<html>a proxy speaks</html>", "text/html")
        else:
            if mode == "together":
                self.server.parties.wait(60)
            self._send(200, json.dumps(_make_reply(mode, text)).encode())

    def _send_error(self, status: int, message: str, code: str | None) -> None:
        self._send(status, json.dumps({"error": {"message": message, "type": "error", "code": code}}).encode())

    def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(content)


def _make_reply(mode: str, text: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": f"echo: {text}"}
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    reply: dict[str, Any] = {"id": "1", "object": "chat.completion", "choices": [choice], "model": MODEL}
    reply["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    if mode == "uncounted":
        del reply["usage"]
    elif mode == "text-count":
        reply["usage"]["prompt_tokens"] = "seven"
    elif mode == "empty":
        reply["choices"] = []
    elif mode == "refusal":
        message |= {"content": None, "refusal": "I will not"}
    elif mode == "silent":
        message["content"] = None
        choice["finish_reason"] = "length"
    elif mode == "logprobs":
        choice["logprobs"] = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -2.0}]}
    return reply
