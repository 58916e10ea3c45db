"""A chat-completions service on loopback that judges as it is told."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def said(content):
    """A reply of the service: status 200 and a chat completion."""
    return 200, {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}, {}


def sentence_of(request):
    return re.search(r"<sentence>\n(.*)\n</sentence>", request["messages"][1]["content"], re.DOTALL)[1]


@contextmanager
def judge_service(reply):
    """Serve POST /v1/chat/completions with `reply(request, number)`; yields the base URL and what was asked: (headers, request)."""
    seen, lock = [], threading.Lock()

    class Service(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append((dict(self.headers), request))
                number = len(seen)
            status, content, headers = reply(request, number) if self.path == "/v1/chat/completions" else (404, {"error": "no such path"}, {})
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
            except OSError:
                pass  # who asked has gone

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
