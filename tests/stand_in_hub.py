"""A stand-in for Hugging Face's and Kaggle's services, over HTTP, for what publishing asks of them.

It keeps what arrives as a hub does: `repos` holds the files of each repository by their paths.
"""

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIGNATURE = "signature-of-an-address"  # as storage's addresses hold one


class StandIn(ThreadingHTTPServer):
    """Answers on localhost.

    Attributes:
        token: that it knows.
        refuse: the status with which it refuses a request, by a pattern of its path.
        busy: how many uploads storage answers with 503 first.
        repos: files by repository and path.
        made: what was asked for, by repository, when it was made.
        asked: methods and paths of the requests.
    """

    def __init__(self, token: str):
        super().__init__(("localhost", 0), _Handler)
        self.token = token
        self.refuse: dict[str, int] = {}
        self.busy = 0
        self.repos: dict[str, dict[str, bytes]] = {}
        self.made: dict[str, dict] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://localhost:{self.server_address[1]}"


@contextlib.contextmanager
def stand_in(token: str) -> Iterator[StandIn]:
    """A service that runs meanwhile."""
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
        hub.asked.append(f"{self.command} {path}")
        for pattern, status in hub.refuse.items():
            if re.search(pattern, path):
                return self._send(status, {"error": f"no, {self.headers.get('Authorization')}"})
        stored = path.startswith("/storage/")
        if not stored and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._send(401, {"error": "who?"})
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return self._send(*answer(self, *match.groups()))
        return self._send(404, {"error": f"there is no {path}"})

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

    # Hugging Face

    def create(self):
        asked = self.json()
        repo = f"{asked['organization']}/{asked['name']}"
        found = {"url": f"{self.server.url}/{repo}"}
        if repo in self.server.repos:
            return 409, found | {"error": "You already created this model repo"}
        private = asked.get("private", asked.get("visibility") == "private")  # older clients' word
        self.server.repos[repo], self.server.made[repo] = {}, {"private": private}
        return 200, found

    def info(self, repo):
        if repo not in self.server.made:
            return 404, {"error": "Repository not found"}
        private = self.server.made[repo]["private"]
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
                    "path": one["path"],
                    "uploadMode": "lfs" if one["size"] > 50_000 else "regular",
                    "shouldIgnore": False,
                }
                for one in self.json()["files"]
            ]
        }

    def batch(self, repo):
        return 200, {
            "transfer": "basic",
            "objects": [
                one | {"actions": {"upload": {"href": self.signed(one["oid"])}}}
                for one in self.json()["objects"]
            ],
        }

    def commit(self, repo):
        files = self.server.repos[repo]
        for line in self.body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif one["key"] == "deletedFile":
                del files[value["path"]]
        return 200, {"commitUrl": f"{self.server.url}/{repo}/commit/1", "commitOid": "1" * 40}

    # Kaggle

    def get_model(self):
        asked = self.json()
        known = f"{asked['ownerSlug']}/{asked['modelSlug']}" in self.server.made
        return (200, {"slug": asked["modelSlug"]}) if known else (404, {"message": "none"})

    def create_model(self):
        asked = self.json()
        self.server.made[f"{asked['ownerSlug']}/{asked['slug']}"] = asked
        return 200, {"id": 1, "url": "/models"}

    def start_upload(self):
        key = f"blob{len(self.server.asked)}"
        self.server.made[key] = self.json()
        return 200, {"token": key, "createUrl": self.signed(key)}

    def create_instance(self):
        asked = self.json()
        repo = f"{asked['ownerSlug']}/{asked['modelSlug']}"
        if repo in self.server.repos:
            return 200, {"error": "there is one", "errorCode": 409}
        self.server.made[f"{repo}/keras"] = asked["body"]
        return self._version(repo, asked)

    def create_version(self):
        asked = self.json()
        return self._version(f"{asked['ownerSlug']}/{asked['modelSlug']}", asked)

    def _version(self, repo, asked):
        self.server.repos[repo] = dict(self._files(asked["body"]))
        return 200, {"id": 2, "url": "/models"}

    def _files(self, folder, under=""):
        for one in folder.get("files", []):
            key = one["token"]
            yield under + self.server.made[key]["name"], self.server.blobs[key]
        for inner in folder.get("directories", []):
            yield from self._files(inner, f"{under}{inner['name']}/")


KAGGLE = "POST /v1/models.ModelApiService/"
REPO = "([^/]+/[^/]+)"
ROUTES = [
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", lambda one: (200, {"errors": [], "warnings": []})),
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
