"""A document analysis service on loopback: POST a picture, get words with polygons, as cloud services answer."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def analysis(words, width=1000, height=2000):
    """Words are (text, x0, y0, x1, y1, confidence) in the unit of the page."""
    found = [
        {"content": text, "polygon": [x0, y0, x1, y0, x1, y1, x0, y1], "confidence": confidence} for text, x0, y0, x1, y1, confidence in words
    ]  # fmt: skip
    return {"status": "succeeded", "analyzeResult": {"pages": [{"width": width, "height": height, "unit": "pixel", "words": found}]}}


@contextmanager
def ocr_service(answers):
    """Serve answers: (status, JSON, headers) in turn, the last one for ever; yields the address and the requests seen."""
    seen, left = [], list(answers)

    class Service(BaseHTTPRequestHandler):
        def _answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append((self.command, self.path, dict(self.headers), body))
            status, content, headers = left.pop(0) if len(left) > 1 else left[0]
            raw = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value.replace("{host}", self.headers["Host"]))
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = _answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/analyze", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
