"""--push-to-hub: the real client uploads to a local server that records its requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub.constants
import pytest
from support.exported_runs import saved_run
from typer.testing import CliRunner

from moco_accel.export.cli import app

pytestmark = pytest.mark.usefixtures("few_blocks")


class Hub(BaseHTTPRequestHandler):
    """Answer the requests of an upload of small files as the hub does, and record them."""

    requests: ClassVar[list[tuple[str, str, str | None, bytes]]] = []
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        type(self).requests.append(("POST", self.path, self.headers.get("Authorization"), body))
        here = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            self._answer({"url": f"{here}/user/name", "name": "user/name", "id": "1"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        else:
            self._answer({"commitUrl": f"{here}/user/name/commit/{'0' * 40}", "commitOid": "0" * 40, "hookOutput": ""})

    def do_GET(self) -> None:
        type(self).requests.append(("GET", self.path, self.headers.get("Authorization"), b""))
        self._answer({"_id": "1", "id": "user/name", "sha": "0" * 40, "siblings": [], "tags": [], "private": False})

    do_HEAD = do_GET

    def _answer(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Hub.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    point_to(address, monkeypatch)
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what HF_ENDPOINT would have set at import."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")


def call(run: Path, out: Path, name: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(run), str(out), "--format", "torchvision", "--push-to-hub", name])
    return result.exit_code, " ".join(result.stderr.split())


def test_the_folder_is_uploaded_to_a_new_repository(tmp_path: Path, hub: str) -> None:
    code, line = call(saved_run(tmp_path / "run", "vit_tiny_patch8"), tmp_path / "out", "user/name")
    assert code == 0, line
    assert line.endswith(f"uploaded to {hub}/user/name")
    created = next(body for _, path, _, body in Hub.requests if path == "/api/repos/create")
    assert json.loads(created)["name"] == "name"
    commit = next(body for _, path, _, body in Hub.requests if "/commit/" in path)
    entries = [json.loads(line) for line in commit.splitlines()]
    files = sorted(entry["value"]["path"] for entry in entries if entry["key"] == "file")
    assert files == ["README.md", "model.safetensors", "preprocessing.json"]
    assert {token for method, _, token, _ in Hub.requests if method == "POST"} == {"Bearer hf_of_a_test"}


def test_a_missing_network_token_or_name_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved_run(tmp_path / "run", "vit_tiny_patch8")
    point_to("http://127.0.0.1:9", monkeypatch)  # the discard port: no server listens
    code, error = call(run, tmp_path / "a", "user/name")
    assert code == 2
    assert "--push-to-hub=user/name: upload to http://127.0.0.1:9 failed" in error
    assert f"hf upload user/name {tmp_path}/a uploads it later" in error
    assert (tmp_path / "a/model.safetensors").exists()

    code, error = call(run, tmp_path / "b", "no-name")
    assert (code, (tmp_path / "b").exists()) == (2, False)
    assert error == "error: --push-to-hub='no-name' is not a repository name; --push-to-hub user/name works"

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    code, error = call(run, tmp_path / "b", "user/name")
    assert (code, (tmp_path / "b").exists()) == (2, False)
    assert error == "error: --push-to-hub needs a token, and none was found; run hf auth login, or set HF_TOKEN"
