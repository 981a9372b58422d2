"""Google Cloud Storage for tests: as much of its JSON API as gcsfs asks for, on this machine, objects in memory."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import parse_qs, quote, unquote, urlsplit


class FakeStorage(http.server.ThreadingHTTPServer):
    """Objects by (bucket, name). `requests` is what was asked; `refusal` an HTTP status that answers all."""

    daemon_threads = True

    def __init__(self, buckets):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets = set(buckets)
        self.objects = {}
        self.uploads = {}
        self.requests = []
        self.refusal = None
        self.bytes_lost = 0  # of every object that is uploaded

    def handle_error(self, request, client_address):
        """Clients that go away before they have their answer are none."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def fake_storage(monkeypatch, *buckets):
    """Serves these buckets, and has gcsfs use them, in this process and in those that it starts."""
    # Else gcsfs asks Google which kind of bucket it is, over another protocol.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "anon")
    import fsspec
    import gcsfs
    from etils.epath import backend

    monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
    fsspec.register_implementation("gcs", gcsfs.core.GCSFileSystem, clobber=True)
    with FakeStorage(buckets) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        # Instances remember listings.
        gcsfs.core.GCSFileSystem.clear_instance_cache()
        backend.fsspec_backend._get_filesystem.cache_clear()
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, query, _ = self._asked()
        if self.server.refusal:
            self._refuse()
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            self._answer(200 if match[1] in self.server.buckets else 404, {"name": match[1]})
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            self._list(match[1], query)
        elif match := re.fullmatch(r"(/download)?/storage/v1/b/([^/]+)/o/([^/]+)", path):
            key = (match[2], unquote(match[3]))
            if key not in self.server.objects:
                self._answer(404, {})
            elif match[1]:
                self._download(self.server.objects[key])
            else:
                self._answer(200, self._described(key))
        else:
            self._answer(501, {})

    def do_POST(self):
        path, query, body = self._asked()
        if self.server.refusal:
            self._refuse()
        elif match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            if match[1] not in self.server.buckets:
                self._answer(404, {})
            elif query["uploadType"] == "multipart":
                boundary = b"\n--==0=="
                head, _, content = body.removesuffix(boundary + b"--").partition(boundary)
                name = json.loads(head.split(b"\n\n", 1)[1])["name"]
                self._keep((match[1], name), content.split(b"\n\n", 1)[1])
            else:
                self.server.uploads[upload := str(len(self.server.uploads))] = bytearray()
                place = f"{self.server.url}/resume?upload={upload}&bucket={match[1]}&name={quote(query['name'])}"
                self._answer(200, {}, Location=place)
        elif path == "/resume":
            content = self.server.uploads[query["upload"]]
            content += body
            if self.headers["Content-Range"].endswith("/*"):
                self._answer(308, None, Range=f"bytes=0-{len(content) - 1}")
            else:
                self._keep((query["bucket"], query["name"]), bytes(content))
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)", path):
            bucket, source, target = map(unquote, match.groups())
            if (bucket, source) in self.server.objects:
                self._keep((bucket, target), self.server.objects.pop((bucket, source)))
            else:
                self._answer(404, {})
        else:
            self._answer(501, {})

    def do_DELETE(self):
        path, _, _ = self._asked()
        match = re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)", path)
        found = self.server.objects.pop((match[1], unquote(match[2])), None)
        self._answer(204 if found is not None else 404, None)

    def log_message(self, *_):
        pass

    def _asked(self):
        url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {unquote(url.path)}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return url.path, {name: values[0] for name, values in parse_qs(url.query).items()}, body

    def _refuse(self):
        self._answer(self.server.refusal, {"error": {"message": "no access\nto storage.objects"}})

    def _described(self, key):
        content = self.server.objects[key]
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        return {"kind": "storage#object", "bucket": key[0], "name": key[1], "size": str(len(content))} | {
            "md5Hash": digest,
            "generation": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def _list(self, bucket, query):
        if bucket not in self.server.buckets:
            self._answer(404, {})
            return
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for key in sorted(self.server.objects):
            if key[0] != bucket or not key[1].startswith(prefix):
                continue
            head, mark, _ = key[1].removeprefix(prefix).partition(delimiter or "\0")
            if mark:
                prefixes.add(prefix + head + mark)
            else:
                items.append(self._described(key))
        self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _download(self, content):
        first, last = 0, len(content) - 1
        if asked := self.headers.get("Range"):
            first, last = (int(n) if n else last for n in asked.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self._send(206 if asked else 200, part, {"Content-Type": "application/octet-stream"})

    def _keep(self, key, content):
        self.server.objects[key] = content[: len(content) - self.server.bytes_lost]
        self._answer(200, self._described(key))

    def _answer(self, status, content, **headers):
        self._send(status, b"" if content is None else json.dumps(content).encode(), headers)

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
