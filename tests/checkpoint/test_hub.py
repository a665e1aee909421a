import hashlib
import http.server
import io
import threading
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.utils.file_io import PathManager
from torch import nn

from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.hub import RELEASED, cache_path, fetch, hash_in_name, local_path, torchvision_url
from detr.checkpoint.options import split_options
from detr.errors import InputError

CONTENT = b"the weights" * 10_000
HASH = hashlib.sha256(CONTENT).hexdigest()[:8]


class Site(http.server.ThreadingHTTPServer):
    """Serves its content under /models/*, and counts the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.requests: list[str] = []
        self.content = CONTENT
        self.sent = len(CONTENT)  # bytes after which the connection is closed
        self.answer = threading.Event()  # requests wait for it
        self.answer.set()

    def url(self, name: str = "weights.pth") -> str:
        return f"http://127.0.0.1:{self.server_port}/models/{name}"


class Page(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.answer.wait(timeout=30)
        if not self.path.startswith("/models/"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.sent])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.answer.set()
        server.shutdown()
        thread.join()


def left_behind(cache: Path) -> list[str]:
    """Names of the files in the cache, without the locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_is_downloaded_once(site, cache):
    path = fetch(site.url(), HASH)
    assert Path(path) == cache / "models" / "weights.pth"
    assert Path(path).read_bytes() == CONTENT
    assert fetch(site.url(), HASH) == path
    assert site.requests == ["/models/weights.pth"]


def test_the_cache_is_shared_with_detectron2s_handler(site, cache):
    theirs = PathManager.get_local_path(site.url("theirs.pth"))
    assert cache_path(site.url("theirs.pth")) == theirs
    assert fetch(site.url("theirs.pth"), HASH) == theirs
    ours = fetch(site.url("ours.pth"), HASH)
    assert PathManager.get_local_path(site.url("ours.pth")) == ours
    assert site.requests == ["/models/theirs.pth", "/models/ours.pth"]


def test_a_file_copied_into_the_cache_needs_no_network(site, cache):
    path = cache / "models" / "weights.pth"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert fetch(site.url(), HASH) == str(path)
    assert site.requests == []
    assert [other.name for other in path.parent.iterdir()] == ["weights.pth"]  # a read-only folder would do


@pytest.mark.parametrize(
    ("path", "plain", "weights"),
    [
        ("https://a.b/w.pth?sig=a%2Bb%2Fc%3D&x=1+2&&y", "https://a.b/w.pth?sig=a%2Bb%2Fc%3D&x=1+2&&y", None),
        ("https://a.b/w.pth?sig=a%2Bb&weights=ema%2Emodule&y=%20", "https://a.b/w.pth?sig=a%2Bb&y=%20", "ema.module"),
        ("https://a.b/w.pth?weights=ema", "https://a.b/w.pth", "ema"),
        ("https://a.b/w.pth?", "https://a.b/w.pth?", None),
        ("w.pth?weights=ema&", "w.pth", "ema"),
    ],
)
def test_a_url_keeps_its_own_parameters_byte_for_byte(path, plain, weights):
    found, options = split_options(path)
    assert (found, options.weights) == (plain, weights)


def test_a_url_with_parameters_is_loaded(site, cache):
    """A signed URL: a file of its own in the cache, downloaded once."""
    queries = ["sig=a%2Bb%2Fc%3D", "sig=d%2Fc%3D", "file=one"]
    for value, query in [*enumerate(queries), (0, queries[0])]:
        model = nn.Linear(1, 1)
        file = io.BytesIO()
        torch.save({key: torch.full_like(tensor, value) for key, tensor in model.state_dict().items()}, file)
        site.content, site.sent = file.getvalue(), len(file.getvalue())
        DetrCheckpointer(model).load(f"{site.url()}?{query}&matching_heuristics=False")
        assert model.bias.item() == value
    assert site.requests == [f"/models/weights.pth?{query}" for query in queries]
    names = left_behind(cache)
    assert len(names) == 3
    assert all(name.endswith("-weights.pth") and "?" not in name for name in names)


def test_a_url_with_parameters_is_held_to_the_hash_in_its_name(site, cache):
    assert Path(local_path(site.url(f"weights-{HASH}.pth?sig=a%2Fb"))).read_bytes() == CONTENT
    with pytest.raises(InputError, match="cut off or altered on its way"):
        local_path(site.url("weights-00000000.pth?sig=a%2Fb"))
    with pytest.raises(InputError, match=r"cannot download the weights \S+/gone/w\.pth\?sig=1 \(Not Found\): check"):
        local_path(site.url("w.pth?sig=1").replace("/models/", "/gone/"))


def test_a_wrong_file_in_the_cache_is_refused_and_kept(site, cache):
    path = cache / "models" / "weights.pth"
    path.parent.mkdir()
    path.write_bytes(CONTENT[:-1])
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()[:8]
    message = rf"weights\.pth is cut off or another file: its SHA-256 begins with {found}, .* with {HASH}; delete it"
    with pytest.raises(InputError, match=message):
        fetch(site.url(), HASH)
    assert path.read_bytes() == CONTENT[:-1]
    assert site.requests == []


def test_a_download_with_another_hash_is_refused(site, cache):
    with pytest.raises(InputError, match=rf'altered on its way: .*expected "00000000", got "{HASH}'):
        fetch(site.url(), "00000000")
    assert left_behind(cache) == []


def test_an_interrupted_download_leaves_nothing_and_starts_again(site, cache):
    site.sent = len(CONTENT) // 2
    with pytest.raises(InputError, match="cut off or altered on its way"):
        fetch(site.url(), HASH)
    assert left_behind(cache) == []
    site.sent = len(CONTENT)
    assert Path(fetch(site.url(), HASH)).read_bytes() == CONTENT
    assert left_behind(cache) == ["weights.pth"]


def test_a_missing_file_is_reported_in_one_line(site, cache):
    url = site.url().replace("/models/", "/gone/")
    with pytest.raises(InputError, match=r"HTTP Error 404: Not Found") as error:
        fetch(url, HASH)
    assert url in str(error.value)
    assert "\n" not in str(error.value)
    assert left_behind(cache) == []


def test_without_a_network_the_error_names_the_place_for_the_file(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Site() as server:
        url = server.url()  # no longer served
    place = cache / "models" / "weights.pth"
    with pytest.raises(InputError, match=rf"cannot download {url} .*Connection refused.* put it at {place}$"):
        fetch(url, HASH)


def test_a_folder_that_cannot_be_written_is_reported(site, cache):
    (cache / "models").write_text("a file in the folder's place")
    with pytest.raises(InputError, match=rf"cannot download .*NotADirectoryError.*{cache}/models/weights\.pth"):
        fetch(site.url(), HASH)
    assert site.requests == []


def test_two_at_once_make_one_request(site, cache):
    site.answer.clear()
    paths: list[str] = []
    both = [threading.Thread(target=lambda: paths.append(fetch(site.url(), HASH))) for _ in range(2)]
    for thread in both:
        thread.start()
    both[0].join(timeout=0.5)  # time for the second request, if there is one
    assert paths == []
    site.answer.set()
    for thread in both:
        thread.join()
    assert paths == [str(cache / "models" / "weights.pth")] * 2
    assert len(site.requests) == 1


def test_every_name_of_published_weights_ends_with_its_hash():
    urls = [model.url for model in RELEASED.values()]
    backbones = torchvision.models.list_models(module=torchvision.models, include="*resne*")
    assert {"resnet50", "resnet101"} <= set(backbones)
    for url in urls + [torchvision_url(f"torchvision://{name}") for name in backbones]:
        digits = hash_in_name(url)
        assert len(digits) >= 8, url
        assert set(digits) <= set("0123456789abcdef"), url


@pytest.mark.parametrize(
    ("name", "place", "digits"),
    [
        ("detr://detr_R_50", "detr/detr-r50-e632da11.pth", "e632da11"),
        ("torchvision://resnet101", "models/resnet101-63fe2227.pth", "63fe2227"),
    ],
)
def test_both_kinds_of_names_reach_the_cache_and_the_check(cache, name, place, digits):
    path = cache / place
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    with pytest.raises(InputError, match=f"{path} is .* begins with {HASH}, that of https://.* with {digits}"):
        PathManager.get_local_path(name)


def test_an_unknown_name_of_a_released_model_is_reported():
    with pytest.raises(InputError, match=r"no released model is named 'detr_R50'; did you mean detr_R_50\?"):
        PathManager.get_local_path("detr://detr_R50")
