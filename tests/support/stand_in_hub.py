"""A stand-in for Hugging Face's and Kaggle's services over HTTP, as far as uploads use them.

It stores uploads as a hub does: `repos` holds the files of each repository by their paths.
"""

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIGNATURE = "signature-of-a-url"  # the URLs of storage hold one


class StandIn(ThreadingHTTPServer):
    """A server on localhost.

    Attributes:
        token: of the only account.
        refuse: status with which requests are refused, by a pattern of their path.
        busy: number of uploads that storage answers with 503 first.
        repos: content of files by repository and path.
        created: the request that created each repository or upload.
        blobs: uploads by their key in storage.
        requests: methods and paths of all requests.
    """

    def __init__(self, token: str):
        super().__init__(("localhost", 0), _Handler)
        self.token = token
        self.refuse: dict[str, int] = {}
        self.busy = 0
        self.repos: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://localhost:{self.server_address[1]}"


@contextlib.contextmanager
def stand_in(token: str) -> Iterator[StandIn]:
    """Run the server while the context lasts."""
    server = StandIn(token)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_GET

    def _answer(self):
        self.body = b"".join(self._read())
        hub, path = self.server, self.path.split("?")[0]
        hub.requests.append(f"{self.command} {path}")
        for pattern, status in hub.refuse.items():
            if re.search(pattern, path):
                return self._send(status, {"error": f"no, {self.headers.get('Authorization')}"})
        is_storage = path.startswith("/storage/")  # whose URLs are signed
        if not is_storage and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._send(401, {"error": "unknown token"})
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return self._send(*answer(self, *match.groups()))
        return self._send(404, {"error": f"no {path}"})

    def _read(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, status, content):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def json(self):
        return json.loads(self.body)

    def store(self, key):
        if self.server.busy:
            self.server.busy -= 1
            return 503, {}
        self.server.blobs[key] = self.body
        return 200, {}

    def signed(self, key):
        return f"{self.server.url}/storage/{key}?sig={SIGNATURE}"

    # === Hugging Face ===

    def create(self):
        request = self.json()
        repo = f"{request['organization']}/{request['name']}"
        answer = {"url": f"{self.server.url}/{repo}"}
        if repo in self.server.repos:
            return 409, answer | {"error": "You already created this model repo"}
        private = request.get("private", request.get("visibility") == "private")  # older clients
        self.server.repos[repo], self.server.created[repo] = {}, {"private": private}
        return 200, answer

    def info(self, repo):
        if repo not in self.server.created:
            return 404, {"error": "Repository not found"}
        private = self.server.created[repo]["private"]
        return 200, {"id": repo, "private": private, "tags": [], "siblings": []}

    def tree(self, repo):
        files = self.server.repos[repo].items()
        return 200, [
            {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
            for path, content in files
        ]

    def preupload(self, repo):
        return 200, {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] > 50_000 else "regular",
                    "shouldIgnore": False,
                }
                for file in self.json()["files"]
            ]
        }

    def batch(self, repo):
        return 200, {
            "transfer": "basic",
            "objects": [
                blob | {"actions": {"upload": {"href": self.signed(blob["oid"])}}}
                for blob in self.json()["objects"]
            ],
        }

    def commit(self, repo):
        files = self.server.repos[repo]
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        return 200, {"commitUrl": f"{self.server.url}/{repo}/commit/1", "commitOid": "1" * 40}

    # === Kaggle ===

    def get_model(self):
        request = self.json()
        exists = f"{request['ownerSlug']}/{request['modelSlug']}" in self.server.created
        return (200, {"slug": request["modelSlug"]}) if exists else (404, {"message": "none"})

    def create_model(self):
        request = self.json()
        self.server.created[f"{request['ownerSlug']}/{request['slug']}"] = request
        return 200, {"id": 1, "url": "/models"}

    def start_upload(self):
        key = f"blob{len(self.server.requests)}"
        self.server.created[key] = self.json()
        return 200, {"token": key, "createUrl": self.signed(key)}

    def create_instance(self):
        request = self.json()
        repo = f"{request['ownerSlug']}/{request['modelSlug']}"
        if repo in self.server.repos:
            return 200, {"error": "it exists", "errorCode": 409}
        self.server.created[f"{repo}/keras"] = request["body"]
        return self._version(repo, request)

    def create_version(self):
        request = self.json()
        return self._version(f"{request['ownerSlug']}/{request['modelSlug']}", request)

    def _version(self, repo, request):
        self.server.repos[repo] = dict(self._files(request["body"]))
        return 200, {"id": 2, "url": "/models"}

    def _files(self, folder, under=""):
        for file in folder.get("files", []):
            key = file["token"]
            yield under + self.server.created[key]["name"], self.server.blobs[key]
        for inner in folder.get("directories", []):
            yield from self._files(inner, f"{under}{inner['name']}/")


KAGGLE = "POST /v1/models.ModelApiService/"
REPO = "([^/]+/[^/]+)"
ROUTES = [
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", lambda _: (200, {"errors": [], "warnings": []})),
    (f"GET /api/models/{REPO}", _Handler.info),
    (f"GET /api/models/{REPO}/tree/main", _Handler.tree),
    (f"POST /api/models/{REPO}/preupload/main", _Handler.preupload),
    (f"POST /{REPO}.git/info/lfs/objects/batch", _Handler.batch),
    (f"POST /api/models/{REPO}/commit/main", _Handler.commit),
    ("PUT /storage/(.+)", _Handler.store),
    (f"{KAGGLE}GetModel", _Handler.get_model),
    (f"{KAGGLE}CreateModel", _Handler.create_model),
    (f"{KAGGLE}CreateModelInstance", _Handler.create_instance),
    (f"{KAGGLE}CreateModelInstanceVersion", _Handler.create_version),
    ("POST /v1/blobs.BlobApiService/StartBlobUpload", _Handler.start_upload),
]
