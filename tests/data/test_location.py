"""Files at addresses are read like files on disk, and every trouble on the way is one clear sentence."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from tiny_studies import write_study

import bmmae.data.location as module
from bmmae.data.cache import StudyCache
from bmmae.data.caching import sound_studies
from bmmae.data.cohort import Study, read_cohort
from bmmae.data.dataset import StudyDataset, View
from bmmae.data.loaders import EVALUATION_EPOCH
from bmmae.data.location import RemoteFile, as_seen_from, fingerprint, locate, refuse_overwriting, write_whole
from bmmae.data.preprocess import PreprocessConfig
from bmmae.data.reading import content_hash, read_header, read_image
from bmmae.errors import CohortError, ImageError, OutputError
from bmmae.modalities import STANDARD


class Quiet(SimpleHTTPRequestHandler):
    """Serves files; the first requests for `flaky...` meet a server in trouble."""

    troubles = 0

    def do_GET(self) -> None:
        if "flaky" in self.path and type(self).troubles > 0:
            type(self).troubles -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def local(tmp_path: Path) -> Study:
    return write_study(tmp_path / "served" / "p1", ("t1", "flair"))


@pytest.fixture
def server(tmp_path: Path, local: Study, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address under which the study's folder is served."""
    monkeypatch.setattr(module, "PAUSE", 0.01)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()
    fsspec.filesystem("http").clear_instance_cache()


@pytest.fixture
def memory(local: Study) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for file in local.files():
        assert isinstance(file, Path)
        system.pipe_file(f"/bmmae-test/p1/{file.name}", file.read_bytes())
    yield "memory://bmmae-test"
    system.rm("/bmmae-test", recursive=True)
    module._remote_fingerprint.cache_clear()


@pytest.fixture(params=["file", "memory", "http"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The folder of the study, by each of three ways."""
    if request.param == "file":
        return (tmp_path / "served").as_uri()
    return str(request.getfixturevalue({"memory": "memory", "http": "server"}[request.param]))


def table(tmp_path: Path, address: str) -> Path:
    path = tmp_path / "cohort.csv"
    files = ",".join(f"{address}/p1/{name}.nii.gz" for name in ("t1", "flair", "seg"))
    path.write_text(f"subject,t1,flair,seg\np1,{files}\n")
    return path


def sample_of(studies: list[Study], cache: StudyCache) -> dict[str, Any]:
    return StudyDataset(studies, View(STANDARD, (16, 16, 16), (8, 8, 8)), cache)[EVALUATION_EPOCH, 0]


def test_a_cohort_at_addresses_gives_the_samples_of_one_on_disk(local: Study, tmp_path: Path, address: str) -> None:
    cohort = read_cohort(table(tmp_path, address))
    cache = StudyCache(tmp_path / "cache", PreprocessConfig(), STANDARD)
    remote, near = sample_of(list(cohort), cache), sample_of([local], StudyCache(None, PreprocessConfig(), STANDARD))
    assert all(torch.equal(remote[key], near[key]) for key in ("images", "valid", "brain"))
    assert cache.find(cohort[0]) is not None
    for name, file in cohort[0].images.items():
        assert content_hash(file) == content_hash(local.images[name])
        assert np.array_equal(read_header(file).affine, read_header(local.images[name]).affine)


def test_a_cohort_at_addresses_is_written_as_it_was_read(local: Study, tmp_path: Path, server: str) -> None:
    cohort = read_cohort(table(tmp_path, server))
    again = read_cohort(cohort.write(tmp_path / "other" / "cohort.csv"))
    assert again.studies == cohort.studies
    assert cohort[0].images["t1"] == RemoteFile(f"{server}/p1/t1.nii.gz")


def test_local_addresses_are_paths() -> None:
    assert locate("file:///data/a%20b.nii") == Path("/data/a b.nii")
    assert locate("a.nii", Path("/data")) == Path("/data/a.nii")
    assert locate("~/a.nii", Path("/data")) == Path.home() / "a.nii"
    assert locate("C:/a.nii") == Path("C:/a.nii")
    assert locate("zip://a.nii::s3://bucket/b.zip") == RemoteFile("zip://a.nii::s3://bucket/b.zip")


def test_paths_as_seen_from_a_folder_behind_a_link_lead_to_the_file(tmp_path: Path) -> None:
    for name in ("home/data", "disk/me/tables", "disk/me/images"):
        (tmp_path / name).mkdir(parents=True)
    link = tmp_path / "home" / "scratch"
    link.symlink_to(tmp_path / "disk" / "me")
    files = [tmp_path / "home" / "data" / "a.nii", link / "images" / "b.nii", link / ".." / "c.nii"]
    for file in files:
        file.touch()
    (tmp_path / "home" / "data" / "d.nii").symlink_to(files[1])
    for folder in (link, link / "tables", tmp_path / "home", tmp_path / "disk" / "me"):
        for file in (*files, tmp_path / "home" / "data" / "d.nii"):
            seen = as_seen_from(folder, file)
            assert (folder / seen).samefile(file)
            assert Path(seen).name == file.name
    assert as_seen_from(link, files[1]) == "images/b.nii", "the two can move together"


@pytest.mark.parametrize("way", ["memory", "server"])
def test_a_file_that_changes_has_another_fingerprint(way: str, local: Study, request: pytest.FixtureRequest) -> None:
    file = RemoteFile(f"{request.getfixturevalue(way)}/p1/t1.nii.gz")
    before = fingerprint(file)
    assert fingerprint(file) == before
    content = file.read_bytes() + b"\0"
    path = local.images["t1"]
    assert isinstance(path, Path)
    path.write_bytes(content)
    fsspec.filesystem("memory").pipe_file("/bmmae-test/p1/t1.nii.gz", content)
    assert fingerprint(file) == before, "a process asks once"
    module._remote_fingerprint.cache_clear()
    assert fingerprint(file) != before


def test_a_server_in_trouble_is_asked_again(server: str, local: Study) -> None:
    path = local.images["t1"]
    assert isinstance(path, Path)
    path.rename(path.with_name("flaky.nii.gz"))
    Quiet.troubles = 2
    assert read_image(f"{server}/p1/flaky.nii.gz").array.any()
    Quiet.troubles = 99
    with pytest.raises(ImageError, match=r"flaky\.nii\.gz cannot be read: 503.*; check the address, the network"):
        read_image(f"{server}/p1/flaky.nii.gz")


def test_what_is_not_there_is_named(server: str, memory: str) -> None:
    for address in (server, memory):
        with pytest.raises(ImageError, match=r"gone\.nii\.gz cannot be read: no such file; check the address"):
            read_image(f"{address}/gone.nii.gz")


def test_a_server_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0)
    with pytest.raises(ImageError, match=r"^http://127\.0\.0\.1:9/a\.nii cannot be read: .*; check the address"):
        read_image("http://127.0.0.1:9/a.nii")


def test_unknown_kinds_of_address_are_refused() -> None:
    with pytest.raises(ImageError, match=r"^gopher://host/a\.nii cannot be read: Protocol not known: gopher"):
        read_image("gopher://host/a.nii")


def test_credentials_are_never_shown() -> None:
    file = RemoteFile("https://me:secret@host/a.nii.gz?token=secret")
    assert str(file) == "https://host/a.nii.gz"
    assert file.name == "a.nii.gz"
    assert "secret" not in str(file._explained(ValueError(f"bad {file.url}")))


def test_other_formats_are_refused(memory: str) -> None:
    with pytest.raises(ImageError, match=r"a\.mgz is no NIfTI file"):
        read_image(f"{memory}/a.mgz")


def test_a_truncated_download_is_found_before_training(memory: str, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/bmmae-test/p1/t1.nii.gz", system.cat_file("/bmmae-test/p1/t1.nii.gz")[:200])
    cohort = read_cohort(table(tmp_path, memory))
    study = replace(cohort[0], images={"t1": cohort[0].images["t1"]})
    cache = StudyCache(None, PreprocessConfig(), STANDARD)
    with pytest.raises(CohortError, match=r"1 of 1 studies cannot be read \(p1: memory://.*t1\.nii\.gz is truncated"):
        sound_studies([study], cache)


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_whole(tmp_path / "new" / "a", b"one")
    assert (tmp_path / "new" / "a").read_bytes() == b"one"
    with pytest.raises(OutputError, match=r"cannot write .*: File exists"):
        write_whole(tmp_path / "new" / "a" / "b", b"two")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a"]


def test_what_is_given_is_never_written_over_whatever_links_lead_to_it(tmp_path: Path) -> None:
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    (tmp_path / "link.nii").symlink_to("t1.nii")
    refuse_overwriting([tmp_path / "out.nii"], [tmp_path / "loop.nii", tmp_path / "t1.nii"])
    with pytest.raises(OutputError, match=r"link\.nii is one of the files given"):
        refuse_overwriting([tmp_path / "link.nii"], [tmp_path / "t1.nii"])
