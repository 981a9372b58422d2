"""A server on this machine that answers like Google Cloud Storage and keeps objects in memory.

It knows the parts of the JSON API that gcsfs, google-cloud-storage and TensorStore (which Orbax uses) ask for.
"""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import math
import re
import threading
from urllib.parse import parse_qs, quote, unquote, urlsplit


class _Objects(dict):
    """Contents by (bucket, name); setting one makes a new generation of the object."""

    def __init__(self):
        super().__init__()
        self.generations = {}
        self._numbers = itertools.count(1)

    def __setitem__(self, key, content):
        super().__setitem__(key, content)
        self.generations[key] = next(self._numbers)

    def generation(self, key):
        """Returns the generation of an object, 0 if it does not exist, as conditions of requests have it."""
        return self.generations[key] if key in self else 0


class FakeStorage(http.server.ThreadingHTTPServer):
    """The server. `objects` has contents by (bucket, name), `requests` a line for each request so far.

    Set `refusal` to an HTTP status to refuse the next `refusals_left` requests whose line matches `refused`.
    """

    daemon_threads = True
    request_queue_size = 128
    page_size = 100  # of a listing

    def __init__(self, buckets):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets = set(buckets)
        self.objects = _Objects()
        self.lock = threading.Lock()
        self.uploads = {}
        self.requests = []
        self.refusal = None
        self.refused = ""
        self.refusals_left = math.inf
        self.bytes_lost = 0  # how many bytes of each uploaded object are dropped

    def handle_error(self, request, client_address):
        """Ignores clients that disconnect before they have their answer."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def fake_storage(monkeypatch, *buckets):
    """Serves these buckets to gcsfs and TensorStore in this process and in processes that it starts."""
    # Otherwise gcsfs asks Google for the kind of the bucket, over another protocol.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    monkeypatch.setenv("FSSPEC_GCS_TOKEN", "anon")
    import fsspec
    import gcsfs
    from etils.epath import backend

    monkeypatch.setitem(fsspec.config.conf, "gcs", {"token": "anon"})
    fsspec.register_implementation("gcs", gcsfs.core.GCSFileSystem, clobber=True)
    with FakeStorage(buckets) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", server.url)
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "anybody")
        # Instances cache listings.
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
    # Head and body in one packet: the second of two small packets waits 40 ms for the first to be acknowledged.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self):
        path, query, _ = self._asked()
        if self._is_refused():
            return
        if match := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            self._answer(200 if match[1] in self.server.buckets else 404, {"name": match[1]})
        elif match := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            self._list(match[1], query)
        elif match := re.fullmatch(r"(/download)?/storage/v1/b/([^/]+)/o/([^/]+)", path):
            self._give((match[2], unquote(match[3])), query, content=match[1] or query.get("alt") == "media")
        else:
            self._answer(501, {})

    def do_POST(self):
        path, query, body = self._asked()
        if self._is_refused():
            return
        if match := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            if match[1] not in self.server.buckets:
                self._answer(404, {})
            elif query["uploadType"] == "media":
                self._keep((match[1], query["name"]), body, query)
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
        path, query, _ = self._asked()
        if self._is_refused():
            return
        match = re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)", path)
        key = (match[1], unquote(match[2]))
        with self.server.lock:
            met, found = self._condition_met(key, query), self.server.objects.get(key)
            if met:
                self.server.objects.pop(key, None)
        self._answer(404 if found is None else 204 if met else 412, None)

    def log_message(self, *_):
        pass

    def _asked(self):
        url = urlsplit(self.path)
        self.asked = f"{self.command} {unquote(url.path)}"
        self.server.requests.append(self.asked)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return url.path, {name: values[0] for name, values in parse_qs(url.query).items()}, body

    def _is_refused(self):
        """Refuses this request if it is to be refused, and returns whether it did."""
        with self.server.lock:
            refused = self.server.refusal and self.server.refusals_left and re.search(self.server.refused, self.asked)
            self.server.refusals_left -= bool(refused)
        if refused:
            self._answer(self.server.refusal, {"error": {"message": "no access\nto storage.objects"}})
        return bool(refused)

    def _described(self, key, content):
        digest = base64.b64encode(hashlib.md5(content).digest()).decode()
        return {"kind": "storage#object", "bucket": key[0], "name": key[1], "size": str(len(content))} | {
            "md5Hash": digest,
            "generation": str(self.server.objects.generation(key)),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def _list(self, bucket, query):
        if bucket not in self.server.buckets:
            self._answer(404, {})
            return
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        after, page_size = query.get("pageToken", ""), int(query.get("maxResults", self.server.page_size))
        with self.server.lock:
            objects = {name: content for (there, name), content in self.server.objects.items() if there == bucket}
        entries = {}  # by the name of an object, or by a common prefix of objects, whose entry is None
        for name in sorted(objects):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            head, mark, _ = name.removeprefix(prefix).partition(delimiter or "\0")
            entry = prefix + head + mark if mark else name
            if entry > after:
                entries[entry] = None if mark else self._described((bucket, name), objects[name])
        names = list(entries)[:page_size]
        answer = {"kind": "storage#objects", "items": [entries[name] for name in names if entries[name]]}
        answer["prefixes"] = [name for name in names if not entries[name]]
        if len(names) < len(entries):
            answer["nextPageToken"] = names[-1]
        self._answer(200, answer)

    def _give(self, key, query, *, content):
        with self.server.lock:
            found, generation = self.server.objects.get(key), str(self.server.objects.generation(key))
        if found is None:
            self._answer(404, {})
        elif query.get("ifGenerationNotMatch") == generation:
            self._answer(304, None)
        elif query.get("ifGenerationMatch", generation) != generation:
            self._answer(412, {})
        elif content:
            self._download(found, generation)
        else:
            self._answer(200, self._described(key, found))

    def _download(self, content, generation):
        first, last = 0, len(content) - 1
        asked = self.headers.get("Range")
        if asked and (match := re.fullmatch(r"bytes=-(\d+)", asked)):
            first = max(0, len(content) - int(match[1]))
        elif asked:
            first, last = (int(n) if n else last for n in asked.removeprefix("bytes=").split("-"))
        headers = {"Content-Type": "application/octet-stream", "x-goog-generation": generation}
        if asked and first >= len(content):
            self._send(416, b"", headers)
            return
        part = content[first : last + 1]
        if asked:
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        self._send(206 if asked else 200, part, headers)

    def _condition_met(self, key, query):
        generation = str(self.server.objects.generation(key))
        return query.get("ifGenerationMatch", generation) == generation

    def _keep(self, key, content, query=None):
        with self.server.lock:
            met = self._condition_met(key, query or {})
            if met:
                kept = content[: len(content) - self.server.bytes_lost]
                self.server.objects[key] = kept
        if met:
            self._answer(200, self._described(key, kept))
        else:
            self._answer(412, {})

    def _answer(self, status, content, **headers):
        self._send(status, b"" if content is None else json.dumps(content).encode(), headers)

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
