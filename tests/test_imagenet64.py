"""Photographs: every published layout gives the same packed file; damage is told, not guessed."""

import hashlib
import http.server
import io
import json
import re
import shutil
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from toy_models import __main__ as command
from toy_models import download, imagenet64
from toy_models.download import Published, WrongFileError, fetch
from toy_models.image_archives import read_source
from toy_models.imagenet64 import BOOK, FIFTY, check_packed, load, pack, to_pixels, to_range

FISH, PENGUIN, ACORN = "n01443537", "n02056570", "n12267677"
PER_CLASS = {"train": 12, "val": 3}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("GUIDANCE_EDU_PROGRESS", "0")
    monkeypatch.setenv("no_proxy", "*")


def jpeg(number, side=64, mode="RGB"):
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize((side, side)).convert(mode).save(stream, "JPEG")
    return stream.getvalue()


def make_folder(where, wnids=(FISH, PENGUIN, ACORN), first=0):
    """Write tiny-imagenet-200 with few images, as the published archive has it."""
    root = where / "tiny-imagenet-200"
    (root / "val/images").mkdir(parents=True)
    (root / "test/images").mkdir(parents=True)
    (root / "test/images/test_0.JPEG").write_bytes(jpeg(0))
    lines, number = [], first
    for wnid in wnids:
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("boxes\n")
        for k in range(PER_CLASS["train"]):
            mode = "L" if k == 5 else "RGB"  # some of the published images are grey
            path = root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG"
            path.write_bytes(jpeg(number, mode=mode))
            number += 1
        for k in range(PER_CLASS["val"]):
            name = f"val_{int(wnid[1:]) + k}.JPEG"
            (root / "val/images" / name).write_bytes(jpeg(number))
            lines.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
            number += 1
    (root / "val/val_annotations.txt").write_text("".join(lines))
    names = {FISH: "goldfish, Carassius auratus", PENGUIN: "king penguin", ACORN: "acorn"}
    words = "".join(f"{wnid}\t{names.get(wnid, 'x')}\n" for wnid in wnids)
    (root / "words.txt").write_text(words)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("published"))


def archive(folder, path):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as target:
            for file in sorted(folder.rglob("*")):
                target.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, f"w:{path.suffix[1:]}") as target:
            target.add(folder, folder.name)
    return path


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    return pack([folder], tmp_path_factory.mktemp("packed"))


def same(one, other):
    first, second = (json.loads((f / "images.json").read_text()) for f in (one, other))
    pixels = (f / "images.npy" for f in (one, other))
    return first == second and len({path.read_bytes() for path in pixels}) == 1


@pytest.mark.parametrize("kind", ["zip", "tar.xz", "tar.gz", "parent", "two parts"])
def test_every_layout_packs_to_the_same_file(folder, packed, tmp_path, kind):
    if kind == "parent":
        sources = [folder.parent]
    elif kind == "two parts":
        sources = [archive(folder, tmp_path / "all.zip"), folder]
    else:
        sources = [archive(folder, tmp_path / f"all.{kind}")]
    assert same(pack(sources, tmp_path / "out"), packed)


def test_images_come_by_class_in_the_order_asked_for(packed, folder):
    images = load(packed, "train", ["king penguin", "goldfish"])
    assert images.labels.tolist() == [0] * 12 + [1] * 12
    assert images.pixels.shape == (24, 64, 64, 3) and images.pixels.dtype == torch.uint8
    assert images.files[0] == f"train/{PENGUIN}_0.JPEG"
    assert list(images.files[12:]) == sorted(images.files[12:])  # as text: _10 before _2
    with Image.open(folder / "train" / FISH / "images" / f"{FISH}_7.JPEG") as image:
        row = images.files.index(f"train/{FISH}_7.JPEG")
        assert np.array_equal(images.pixels[row].numpy(), np.asarray(image.convert("RGB")))


def test_validation_images_have_the_classes_of_their_list(packed):
    images = load(packed, "val", [ACORN, "goldfish"])
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(file.startswith("val/val_") for file in images.files)


def test_the_hash_of_images_sees_pixels_labels_and_names(packed):
    images = load(packed, "train", ["goldfish", "king penguin"])
    again = load(packed, "train", ["goldfish", "king penguin"])
    assert images.sha256() == again.sha256()
    pixels = images.pixels.clone()
    pixels[0, 0, 0, 0] ^= 1
    other = [
        imagenet64.Images(pixels, images.labels, images.files),
        imagenet64.Images(images.pixels, images.labels.flip(0), images.files),
        imagenet64.Images(images.pixels, images.labels, images.files[::-1]),
    ]
    assert len({images.sha256(), *(x.sha256() for x in other)}) == 4


def test_pixels_and_model_inputs_convert_into_each_other():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    x = to_range(pixels)
    assert x.shape == (1, 3, 16, 16) and float(x.min()) == -1 and float(x.max()) == 1
    assert torch.equal(to_pixels(x), pixels)
    assert torch.equal(to_pixels(x * 3), to_pixels((x * 3).clamp(-1, 1)))


def test_the_class_lists_name_fifty_different_classes():
    assert len(BOOK) == 10 and len(FIFTY) == len(set(FIFTY.values())) == 50
    assert list(FIFTY)[:10] == list(BOOK)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in FIFTY.values())


def test_only_the_classes_asked_for_are_packed(folder, tmp_path):
    out = pack([folder], tmp_path, ["goldfish", ACORN])
    assert set(imagenet64.wnids_of(out)) == {FISH, ACORN}
    with pytest.raises(ValueError, match="no image of the classes"):
        pack([folder], tmp_path / "other", ["goldfish", "pizza"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("split", "classes", "message"),
    [
        ("test", ["goldfish"], "expected the split train or val"),
        ("train", ["gold fish"], "unknown class 'gold fish'; expected .* goldfish"),
        ("train", ["goldfish", FISH], "every class once"),
        ("train", ["pizza"], "not packed"),
    ],
)
def test_a_wrong_request_is_explained(packed, split, classes, message):
    with pytest.raises(ValueError, match=message):
        load(packed, split, classes)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="images download"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        pack([tmp_path / "nothing.zip"], tmp_path)
    with pytest.raises(ValueError, match="at least one source"):
        pack([], tmp_path)


def test_another_layout_is_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/fish.JPEG").write_bytes(jpeg(0))
    with pytest.raises(ValueError, match="another layout: expected tiny-imagenet-200"):
        pack([tmp_path / "pictures"], tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar.xz", "tar.gz"])
def test_an_archive_that_was_cut_off_is_refused(folder, tmp_path, kind):
    whole = archive(folder, tmp_path / f"all.{kind}").read_bytes()
    (tmp_path / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged or cut off"):
        pack([tmp_path / f"cut.{kind}"], tmp_path / "out")
    assert not (tmp_path / "out/images.json").exists()


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy" / folder.name)


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg(3)[:300], jpeg(3, side=32)])
def test_a_damaged_or_wrong_image_is_named(folder, tmp_path, content):
    copy = copied(folder, tmp_path)
    (copy / "train" / FISH / "images" / f"{FISH}_3.JPEG").write_bytes(content)
    with pytest.raises(ValueError, match=f"{FISH}_3.JPEG"):
        pack([copy], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_validation_image_without_a_class_is_named(folder, tmp_path):
    copy = copied(folder, tmp_path)
    (copy / "val/images/val_99.JPEG").write_bytes(jpeg(1))
    with pytest.raises(ValueError, match="without a class .*val_99"):
        pack([copy], tmp_path / "out")


def test_two_sources_that_disagree_are_refused(folder, tmp_path):
    copy = copied(folder, tmp_path)
    (copy / "train" / FISH / "images" / f"{FISH}_3.JPEG").write_bytes(jpeg(999))
    with pytest.raises(ValueError, match=f"another image under the name train/{FISH}_3"):
        pack([folder, copy], tmp_path / "out")


def test_packed_files_that_changed_are_noticed(packed, tmp_path):
    copy = shutil.copytree(packed, tmp_path / "copy")
    content = bytearray((copy / "images.npy").read_bytes())
    content[-1] ^= 1
    (copy / "images.npy").write_bytes(content)
    with pytest.raises(ValueError, match="sha256"):
        check_packed(copy)
    (copy / "images.npy").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load(copy, "train", ["goldfish"])
    (copy / "images.json").write_text('{"files": []}')
    with pytest.raises(ValueError, match="damaged"):
        load(copy, "train", ["goldfish"])


def batches(where, number=6):
    where.mkdir()
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (number, 12288), dtype=np.uint8)
    labels = np.array([2, 7, 2, 9, 7, 2])[:number]
    mean = data.mean(0)
    np.savez(where / "train_data_batch_1.npz", data=data, labels=labels, mean=mean)
    np.savez(where / "val_data.npz", data=data[:2], labels=labels[:2])
    table = f"{FISH} 2 goldfish\n{PENGUIN} 7 king_penguin\n{ACORN} 9 acorn\n"
    (where / "map_clsloc.txt").write_text(table)
    return data


def test_npz_batches_are_read_by_channel_first_rows(tmp_path):
    data = batches(tmp_path / "batches")
    out = pack([tmp_path / "batches"], tmp_path / "out", ["goldfish", "king penguin"])
    images = load(out, "train", ["goldfish", "king penguin"])
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    expected = data[[0, 2, 5, 1, 4]].reshape(5, 3, 64, 64).transpose(0, 2, 3, 1)
    assert np.array_equal(images.pixels.numpy(), expected)
    assert len(load(out, "val", ["goldfish"])) == 1
    assert read_source(tmp_path / "batches")[1][PENGUIN] == "king penguin"


def test_npz_batches_need_the_list_of_their_labels(tmp_path):
    batches(tmp_path / "batches")
    table = tmp_path / "batches/map_clsloc.txt"
    table.write_text(f"{FISH} 2 goldfish\n")
    with pytest.raises(ValueError, match=r"labels \[7, 9\] are not in"):
        pack([tmp_path / "batches"], tmp_path / "out")
    table.write_text("goldfish\n")
    with pytest.raises(ValueError, match="kit_fox"):
        pack([tmp_path / "batches"], tmp_path / "out")
    table.unlink()
    with pytest.raises(FileNotFoundError, match="map_clsloc.txt"):
        pack([tmp_path / "batches"], tmp_path / "out")


def test_npz_batches_of_another_size_or_with_pickles_are_refused(tmp_path):
    batches(tmp_path / "batches")
    path = tmp_path / "batches/train_data_batch_1.npz"
    np.savez(path, data=np.zeros((2, 3072), np.uint8), labels=np.array([2, 2]))
    with pytest.raises(ValueError, match=r"\[2, 12288\]"):
        pack([tmp_path / "batches"], tmp_path / "out")
    np.savez(path, data=np.array([{}, {}], dtype=object), labels=np.array([2, 2]))
    with pytest.raises(ValueError, match="no .npz batch"):
        pack([tmp_path / "batches"], tmp_path / "out")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"):
        pack([tmp_path / "batches"], tmp_path / "out")


CONTENT = np.random.default_rng(1).bytes(3_000_000)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT, honestly or not: what it does is set on the server object."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.kind == "gone":
            self.send_error(404)
            return
        content = server.content
        start = 0
        if self.headers.get("Range") and server.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
            self.send_response(206)
            told = start + 1 if server.kind == "lies" else start
            last, whole = len(content) - 1, len(content)
            self.send_header("Content-Range", f"bytes {told}-{last}/{whole}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        part = content[start:]
        if server.drops:
            server.drops -= 1
            part = part[: len(part) // 3]
        self.wfile.write(part)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.kind, server.drops, server.ranges, server.asked = "", 0, True, []
        server.content = CONTENT
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def published(server):
    address = f"http://127.0.0.1:{server.server_port}/images.zip"
    return Published(address, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_a_file_is_fetched_checked_and_not_fetched_again(server, published, tmp_path):
    path = fetch(published, tmp_path)
    assert path == tmp_path / "images.zip" and path.read_bytes() == CONTENT
    assert fetch(published, tmp_path) == path
    assert server.asked == [None]
    assert [file.name for file in tmp_path.iterdir()] == ["images.zip"]


def test_a_dropped_connection_goes_on_where_it_broke(server, published, tmp_path):
    server.drops = 2
    assert fetch(published, tmp_path, pause=0.0).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-", "bytes=1666666-"]


def test_a_second_call_goes_on_with_what_the_first_left(server, published, tmp_path):
    server.drops = 1
    with pytest.raises(ConnectionError, match="1000000 of 3000000 bytes arrived and are kept"):
        fetch(published, tmp_path, tries=1)
    assert not (tmp_path / "images.zip").exists()
    assert fetch(published, tmp_path, tries=1).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=1000000-"


def test_a_server_without_ranges_is_asked_for_the_whole(server, published, tmp_path):
    server.drops, server.ranges = 1, False
    assert fetch(published, tmp_path, pause=0.0).read_bytes() == CONTENT


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server, published, tmp_path):
    server.content = b"<html>sign in first</html>"
    with pytest.raises(WrongFileError, match="offers another file: expected 3000000 bytes"):
        fetch(published, tmp_path)
    assert not list(tmp_path.glob("images.zip*"))


def test_a_file_of_the_right_size_and_wrong_content_is_refused(server, published, tmp_path):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(WrongFileError, match="expected sha256"):
        fetch(published, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_server_that_sends_another_part_is_refused(server, published, tmp_path):
    server.kind = "lies"
    (tmp_path / "images.zip.part").write_bytes(CONTENT[:500])
    with pytest.raises(WrongFileError, match="another part"):
        fetch(published, tmp_path)


def test_a_damaged_file_that_is_already_there_is_not_taken(published, tmp_path):
    (tmp_path / "images.zip").write_bytes(CONTENT[:500])
    with pytest.raises(WrongFileError, match="has 500 bytes, expected 3000000"):
        fetch(published, tmp_path)


def test_an_address_that_is_gone_or_cannot_be_reached_is_said(server, published, tmp_path):
    server.kind = "gone"
    with pytest.raises(ConnectionError, match="answers 404"):
        fetch(published, tmp_path)
    closed = Published("http://127.0.0.1:9/images.zip", 5, published.sha256)
    with pytest.raises(ConnectionError, match="cannot fetch .* Without a network"):
        fetch(closed, tmp_path, tries=2, pause=0.0)
    with pytest.raises(ValueError, match="https://"):
        fetch(Published("file:///etc/hosts", 5, published.sha256), tmp_path)


def test_the_commands_download_pack_and_list(server, folder, tmp_path, monkeypatch, capsys):
    server.content = archive(folder, tmp_path / "tiny-imagenet-200.zip").read_bytes()
    digest = hashlib.sha256(server.content).hexdigest()
    address = f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip"
    offered = Published(address, len(server.content), digest)
    monkeypatch.setattr("toy_models.image_commands.TINY_IMAGENET", offered)
    data = str(tmp_path / "data")
    assert command.main(["images", "download", "--data", data]) == 0
    assert command.main(["images", "list", "--data", data]) == 0
    out = capsys.readouterr().out
    assert "non-commercial" in out and "45 images of 3 classes" in out
    assert f"{ACORN} acorn" in out and "   12 train    3 val" in out
    again = str(tmp_path / "again")
    assert command.main(["images", "pack", str(folder), "--data", again]) == 0
    assert same(tmp_path / "data", tmp_path / "again")


def test_the_commands_say_what_is_wrong_in_one_line(tmp_path, capsys):
    assert command.main(["images", "list", "--data", str(tmp_path)]) == 2
    assert command.main(["images", "pack", str(tmp_path / "no.zip"), "--data", "x"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)


def test_the_published_address_is_the_official_one():
    offered = download.TINY_IMAGENET
    assert offered.address == "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
    assert offered.bytes == 248_100_043 and re.fullmatch(r"[0-9a-f]{64}", offered.sha256)
