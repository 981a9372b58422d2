"""Downloads, against a local server that answers as the hub does; each fetch runs in a process of its own.

huggingface_hub reads HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE when it is imported.
"""

import dataclasses
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from typing import ClassVar

import pytest
from support import tiny_model

from wroformer_jax.checkpoints import hub
from wroformer_jax.checkpoints.loading import save
from wroformer_jax.cli import tables
from wroformer_jax.config.known_checkpoints import KNOWN_CHECKPOINTS
from wroformer_jax.errors import InputError
from wroformer_jax.model.roformer import RoFormer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 100
# Nobody listens on port 9 of this machine, the "discard" service of old.
NOWHERE = "http://127.0.0.1:9"

YAML = b"model: {dim: 8}"

PREPARE = """
import sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits longer and longer between attempts to connect
from wroformer_jax.checkpoints import hub
from wroformer_jax.errors import InputError
try:
    {}
except InputError as error:
    sys.exit(f"error: {{error}}")
"""
FETCH = PREPARE.format("print(*hub.fetch(sys.argv[1]), sep='\\n')")
FETCH_YAML = PREPARE.format("print(hub.fetch_yaml(sys.argv[1]))")


class Hub(http.server.BaseHTTPRequestHandler):
    """Has owner/repo, with weights.ckpt and sub/with_yaml.ckpt on main and at a commit, and owner/gated."""

    files: ClassVar = {
        "/owner/repo/resolve/main/weights.ckpt": WEIGHTS,
        f"/owner/repo/resolve/{COMMIT}/sub/with_yaml.ckpt": WEIGHTS,
        f"/owner/repo/resolve/{COMMIT}/sub/with_yaml.yaml": YAML,
        "/owner/repo/resolve/main/sub/with_yaml.yaml": YAML,
        f"/{KNOWN_CHECKPOINTS['kim-melband'].repo}/resolve/main/{KNOWN_CHECKPOINTS['kim-melband'].file}": WEIGHTS,
    }

    def do_HEAD(self):
        self.server.requests.append((self.command, self.path))
        if self.path in self.files:
            self.send_response(200)
            content = self.files[self.path]
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_response(403 if self.path.startswith("/owner/gated") else 404)
            self.send_header("X-Error-Code", self.error_code())
            self.send_header("Content-Length", "0")
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        if self.path in self.files:
            self.wfile.write(self.files[self.path])

    def error_code(self):
        if self.path.startswith("/owner/gated/"):
            return "GatedRepo"
        if not self.path.startswith("/owner/repo/"):
            return "RepoNotFound"
        known = any(f"/resolve/{revision}/" in self.path for revision in ("main", COMMIT))
        return "EntryNotFound" if known else "RevisionNotFound"

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.requests = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def fetch(server, tmp_path):
    def run(source, code=FETCH, **variables):
        clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment = {
            **clean,
            "HF_HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            **variables,
        }
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN"):
            environment.pop(name, None)
        return subprocess.run(
            [sys.executable, "-c", code, source], env=environment, capture_output=True, text=True, check=False
        )

    return run


def assert_fails(result, *parts):
    assert result.returncode == 1
    # Before the error huggingface_hub may say that it tries to connect again.
    *retries, line = result.stderr.strip().splitlines()
    assert all("Retrying" in text or "thrown while requesting" in text for text in retries), retries
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_download_and_cache(fetch, server, tmp_path):
    first = fetch("hf://owner/repo/weights.ckpt")
    assert first.returncode == 0, first.stderr
    path, config = first.stdout.splitlines()
    assert path.startswith(str(tmp_path / "home"))
    assert os.path.basename(path) == "weights.ckpt"
    with open(path, "rb") as file:
        assert file.read() == WEIGHTS
    assert config == "None"

    server.requests.clear()
    assert fetch("hf://owner/repo/weights.ckpt").stdout == first.stdout
    assert "GET" not in [method for method, path in server.requests if "resolve" in path]
    assert fetch("hf://owner/repo/weights.ckpt", HF_ENDPOINT=NOWHERE).stdout == first.stdout
    assert fetch("hf://owner/repo/weights.ckpt", HF_HUB_OFFLINE="1").stdout == first.stdout


def test_revision_and_folder(fetch):
    result = fetch(f"hf://owner/repo@{COMMIT}/sub/with_yaml.ckpt")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].endswith(f"{COMMIT}/sub/with_yaml.ckpt")


@pytest.mark.parametrize("source", ["kim-melband", "hf://KimberleyJSN/melbandroformer/MelBandRoformer.ckpt"])
def test_known_checkpoint_brings_its_settings(fetch, source):
    result = fetch(source)
    assert result.returncode == 0, result.stderr
    path, config = result.stdout.splitlines()
    assert path.endswith("/MelBandRoformer.ckpt")
    assert config == str(KNOWN_CHECKPOINTS["kim-melband"].config)


def test_no_such_file(fetch):
    assert_fails(fetch("hf://owner/repo/other.ckpt"), "hf://owner/repo/other.ckpt", "no file 'other.ckpt'")


def test_no_such_repository(fetch):
    assert_fails(fetch("hf://owner/other/weights.ckpt"), "has no repository owner/other", "or it is private")


def test_no_such_revision(fetch):
    assert_fails(fetch("hf://owner/repo@v2/weights.ckpt"), "hf://owner/repo@v2/weights.ckpt", "no revision 'v2'")


def test_gated(fetch):
    assert_fails(fetch("hf://owner/gated/weights.ckpt"), "is gated", "hf auth login")


def test_offline_and_not_cached(fetch):
    result = fetch("smule-wsa", HF_HUB_OFFLINE="1")
    assert_fails(result, "hf://smulelabs/windowed-roformer/mbr-win10-sink8.ckpt is not in the cache", "HF_HUB_OFFLINE")


def test_server_down_and_not_cached(fetch):
    result = fetch("hf://owner/repo/weights.ckpt", HF_ENDPOINT=NOWHERE)
    assert_fails(result, "is not in the cache and the hub cannot be reached", NOWHERE)


def test_name_that_the_hub_does_not_allow(fetch):
    assert_fails(fetch("hf://ow ner/repo/weights.ckpt"), "cannot download hf://ow ner/repo/weights.ckpt")


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_yaml_of_the_same_name(fetch, server, revision):
    source = f"hf://owner/repo{revision}/sub/with_yaml.ckpt"
    result = fetch(source, FETCH_YAML)
    assert result.returncode == 0, result.stderr
    path = result.stdout.strip()
    assert path.endswith("sub/with_yaml.yaml")
    with open(path, "rb") as file:
        assert file.read() == YAML
    # Once in the cache, it is there for work offline, as the weights are.
    assert fetch(source, FETCH_YAML, HF_HUB_OFFLINE="1").stdout == result.stdout


def test_no_yaml(fetch):
    for source in ("hf://owner/repo/weights.ckpt", f"hf://owner/repo@{COMMIT}/weights.ckpt"):
        result = fetch(source, FETCH_YAML)
        assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr
        assert result.stderr == ""


def test_yaml_that_cannot_be_looked_for(fetch):
    result = fetch("hf://owner/repo/weights.ckpt", FETCH_YAML, HF_HUB_OFFLINE="1")
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr
    assert "continuing without the YAML file of hf://owner/repo/weights.ckpt, if it has one" in result.stderr
    assert_fails(fetch("hf://owner/gated/weights.ckpt", FETCH_YAML), "hf://owner/gated/weights.yaml is gated")


LOAD = PREPARE.format(
    "from wroformer_jax.checkpoints.loading import read; c = read(sys.argv[1])[0]; print(c.window, c.stems)"
)


def test_settings_come_with_the_weights(fetch, tmp_path, monkeypatch):
    model = RoFormer(tiny_model.CONFIG)
    config = dataclasses.replace(tiny_model.CONFIG, window=6, stems=("drums",))
    save(tmp_path / "tiny.safetensors", model, tiny_model.make_params())
    yaml = tiny_model.YAML.replace("window_len: 4", "window_len: 6").replace("vocals", "drums")
    files = {"tiny.safetensors": (tmp_path / "tiny.safetensors").read_bytes(), "tiny.yaml": yaml.encode()}
    for name, content in files.items():
        monkeypatch.setitem(Hub.files, f"/owner/repo/resolve/main/{name}", content)
    result = fetch("hf://owner/repo/tiny.safetensors", LOAD)
    assert result.stdout == f"{config.window} {config.stems}\n", result.stderr


@pytest.mark.parametrize("source", ["hf://", "hf://owner", "hf://owner/repo", "hf://owner/repo/", "hf:///repo/file"])
def test_misspelt_source(source):
    with pytest.raises(InputError, match="is not of the form hf://owner/repo/file"):
        hub.fetch(source)


def test_models_table():
    lines = tables.models_table().splitlines()
    assert lines[0].split()[0] == "NAME"
    assert [line.split()[0] for line in lines[1:]] == ["kim-melband", "smule-wsa"]
    columns = [lines[0].index(heading) for heading in ("WHAT IT IS", "SIZE", "LICENCE", "FROM")]
    for line in lines[1:]:
        assert all(line[column - 2 : column] == "  " and line[column] != " " for column in columns)
    assert "hf://smulelabs/windowed-roformer/mbr-win10-sink8.ckpt" in lines[2]


def test_known_settings_are_the_published_ones():
    kim, smule = KNOWN_CHECKPOINTS["kim-melband"].config, KNOWN_CHECKPOINTS["smule-wsa"].config
    assert (kim.time_mixer, kim.num_sinks, kim.zero_dc) == ("full", 0, False)
    assert (smule.time_mixer, smule.window, smule.num_sinks, smule.zero_dc) == ("windowed_sink", 10, 8, True)
    for config in (kim, smule):
        assert (config.band_scheme, config.num_bands, config.dim, config.depth) == ("mel", 60, 384, 6)
        assert (config.stft_hop_length, config.mask_layers, config.stems) == (441, 3, ("vocals",))
