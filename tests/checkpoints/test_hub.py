"""Downloads from a local server that answers as the hub does.

huggingface_hub reads HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE when it is imported. So each setting has a process of its
own, which downloads for all tests. They share a cache: a test of a file that is not cached uses a name of its own.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from typing import ClassVar, NamedTuple

import pytest
from support import tiny_model
from support.helpers import of_a_program

from wroformer_jax.checkpoints import hub
from wroformer_jax.checkpoints.loading import save
from wroformer_jax.cli import tables
from wroformer_jax.config.known_checkpoints import KNOWN_CHECKPOINTS
from wroformer_jax.errors import InputError
from wroformer_jax.model.roformer import RoFormer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 100
NOWHERE = "http://127.0.0.1:9"  # the port of the old "discard" service, on which nobody listens
YAML = b"model: {dim: 8}"

# Reads lines of JSON, [function, source], and answers each with a line of JSON.
PROGRAM = """
import contextlib, io, json, sys, time
time.sleep = lambda seconds: None  # huggingface_hub sleeps between its attempts to connect
from wroformer_jax.checkpoints import hub, loading
from wroformer_jax.errors import InputError

FUNCTIONS = {
    "fetch": hub.fetch,
    "fetch_yaml": lambda source: [hub.fetch_yaml(source)],
    "settings": lambda source: [loading.read(source)[0]],
}
answers = sys.stdout
for line in sys.stdin:
    name, source = json.loads(line)
    said, answer = io.StringIO(), {"result": None, "error": None}
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            answer["result"] = [None if value is None else str(value) for value in FUNCTIONS[name](source)]
        except InputError as error:
            answer["error"] = str(error)
    print(json.dumps({**answer, "said": said.getvalue()}), file=answers, flush=True)
"""


class Answer(NamedTuple):
    """The answer of a process: what a function returned, as text, or the message of its InputError."""

    result: list[str | None] | None
    error: str | None
    said: str  # printed or logged meanwhile


class Hub(http.server.BaseHTTPRequestHandler):
    """Has owner/repo, with weights.ckpt and sub/with_yaml.ckpt on main and at a commit, and owner/gated."""

    kim: ClassVar = KNOWN_CHECKPOINTS["kim-melband"]
    files: ClassVar = {
        "/owner/repo/resolve/main/weights.ckpt": WEIGHTS,
        f"/owner/repo/resolve/{COMMIT}/sub/with_yaml.ckpt": WEIGHTS,
        f"/owner/repo/resolve/{COMMIT}/sub/with_yaml.yaml": YAML,
        "/owner/repo/resolve/main/sub/with_yaml.yaml": YAML,
        f"/{kim.repo}/resolve/main/{kim.file}": WEIGHTS,
    }
    requests: ClassVar = []

    def do_HEAD(self):
        self.requests.append((self.command, self.path))
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


class Downloader:
    """A process with its own settings of huggingface_hub, started when it is first asked."""

    def __init__(self, stack, **settings):
        self.stack = stack
        self.settings = settings
        self.process = None

    def __call__(self, source, function="fetch"):
        if self.process is None:
            ignored = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN")
            environment = {
                name: value
                for name, value in of_a_program().items()
                if name not in ignored and not name.lower().endswith("_proxy")
            }
            self.process = self.stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM],
                    env={**environment, **self.settings},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            self.stack.callback(self.process.stdin.close)
        self.process.stdin.write(json.dumps([function, source]) + "\n")
        self.process.stdin.flush()
        return Answer(**json.loads(self.process.stdout.readline()))


@pytest.fixture(scope="module")
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def settings(stack, tmp_path_factory):
    """The environment of a process that reaches the server."""
    server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)
    return {"HF_HOME": str(tmp_path_factory.mktemp("home")), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}


@pytest.fixture(scope="module")
def online(stack, settings):
    return Downloader(stack, **settings)


@pytest.fixture(scope="module")
def offline(stack, settings):
    return Downloader(stack, **settings, HF_HUB_OFFLINE="1")


@pytest.fixture(scope="module")
def unreachable(stack, settings):
    return Downloader(stack, **{**settings, "HF_ENDPOINT": NOWHERE})


def assert_fails(answer, *parts):
    assert answer.error is not None
    assert "\n" not in answer.error
    # huggingface_hub may say that it connects again.
    assert all("Retrying" in line or "thrown while requesting" in line for line in answer.said.splitlines())
    for part in parts:
        assert part in answer.error


def test_download_and_cache(online, offline, unreachable, settings):
    first = online("hf://owner/repo/weights.ckpt")
    path, config = first.result
    assert path.startswith(settings["HF_HOME"])
    assert os.path.basename(path) == "weights.ckpt"
    with open(path, "rb") as file:
        assert file.read() == WEIGHTS
    assert config is None

    Hub.requests.clear()
    for fetch in (online, unreachable, offline):
        assert fetch("hf://owner/repo/weights.ckpt").result == first.result
    assert "GET" not in [method for method, path in Hub.requests if "resolve" in path]


def test_revision_and_folder(online):
    path, _ = online(f"hf://owner/repo@{COMMIT}/sub/with_yaml.ckpt").result
    assert path.endswith(f"{COMMIT}/sub/with_yaml.ckpt")


@pytest.mark.parametrize("source", ["kim-melband", "hf://KimberleyJSN/melbandroformer/MelBandRoformer.ckpt"])
def test_known_checkpoint_brings_its_settings(online, source):
    path, config = online(source).result
    assert path.endswith("/MelBandRoformer.ckpt")
    assert config == str(KNOWN_CHECKPOINTS["kim-melband"].config)


def test_no_such_file(online):
    assert_fails(online("hf://owner/repo/other.ckpt"), "hf://owner/repo/other.ckpt", "no file 'other.ckpt'")


def test_no_such_repository(online):
    assert_fails(online("hf://owner/other/weights.ckpt"), "the hub has no repository owner/other", "or it is private")


def test_no_such_revision(online):
    assert_fails(online("hf://owner/repo@v2/weights.ckpt"), "hf://owner/repo@v2/weights.ckpt", "no revision 'v2'")


def test_gated(online):
    assert_fails(online("hf://owner/gated/weights.ckpt"), "is gated", "hf auth login")


def test_offline_and_not_cached(offline):
    answer = offline("hf://owner/repo@v3/never_asked_for.ckpt")
    assert_fails(answer, "hf://owner/repo@v3/never_asked_for.ckpt is not in the cache", "HF_HUB_OFFLINE")


def test_server_down_and_not_cached(unreachable):
    answer = unreachable("hf://owner/repo/never_asked_for.ckpt")
    assert_fails(answer, "is not in the cache and the hub cannot be reached", NOWHERE)


def test_name_that_the_hub_does_not_allow(online):
    assert_fails(online("hf://ow ner/repo/weights.ckpt"), "cannot download hf://ow ner/repo/weights.ckpt")


@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_yaml_of_the_same_name(online, offline, revision):
    source = f"hf://owner/repo{revision}/sub/with_yaml.ckpt"
    (path,) = online(source, "fetch_yaml").result
    assert path.endswith("sub/with_yaml.yaml")
    with open(path, "rb") as file:
        assert file.read() == YAML
    # The YAML is in the cache for work offline, as the weights are.
    assert offline(source, "fetch_yaml").result == [path]


def test_no_yaml(online):
    for source in ("hf://owner/repo/weights.ckpt", f"hf://owner/repo@{COMMIT}/weights.ckpt"):
        assert online(source, "fetch_yaml") == Answer([None], None, "")


def test_yaml_that_cannot_be_looked_for(online, offline):
    answer = offline("hf://owner/repo/looked_for_offline.ckpt", "fetch_yaml")
    assert answer.result == [None]
    expected = "continuing without the YAML file of hf://owner/repo/looked_for_offline.ckpt, if it has one"
    assert expected in answer.said
    assert_fails(online("hf://owner/gated/weights.ckpt", "fetch_yaml"), "hf://owner/gated/weights.yaml is gated")


@pytest.fixture
def tiny_weights(tmp_path):
    save(tmp_path / "tiny.safetensors", RoFormer(tiny_model.CONFIG), tiny_model.make_params())
    return (tmp_path / "tiny.safetensors").read_bytes()


def test_settings_come_with_the_weights(online, tiny_weights, monkeypatch):
    yaml = tiny_model.YAML.replace("window_len: 4", "window_len: 6").replace("vocals", "drums")
    monkeypatch.setitem(Hub.files, "/owner/repo/resolve/main/tiny.safetensors", tiny_weights)
    monkeypatch.setitem(Hub.files, "/owner/repo/resolve/main/tiny.yaml", yaml.encode())
    config = dataclasses.replace(tiny_model.CONFIG, window=6, stems=("drums",))
    assert online("hf://owner/repo/tiny.safetensors", "settings").result == [str(config)]


def test_weights_are_checked_against_the_settings_of_a_known_checkpoint(online, tmp_path, monkeypatch):
    save(tmp_path / "tiny.ckpt", RoFormer(tiny_model.CONFIG), tiny_model.make_params())
    smule = KNOWN_CHECKPOINTS["smule-wsa"]
    content = (tmp_path / "tiny.ckpt").read_bytes()
    monkeypatch.setitem(Hub.files, f"/{smule.repo}/resolve/main/{smule.file}", content)
    for source in ("smule-wsa", smule.source):
        assert_fails(online(source, "settings"), "the config says dim is 384, but the weights in", "have 16")


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
