"""From sources to files: folders, lists, shards, and what is said about those that are wrong."""

import io
import tarfile

import pytest
import webdataset

from cvvae_cli.errors import UsageError, VideoError
from cvvae_cli.training.sources import MediaFile, list_files


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 3)
    return folder


def write_shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def names(found, folder):
    return [file.name.removeprefix(f"{folder}/") for file in found]


def content(file):
    with file.opened() as path:
        return path.read_bytes()


def test_a_folder_is_searched_to_the_bottom_in_the_order_of_paths(tmp_path):
    fill(tmp_path, ["b.mp4", "a/z.MKV", "a/c.png", "a.jpg", "notes.txt", "a/x.json"])
    fill(tmp_path, [".hidden.mp4", ".trash/gone.mp4", "a/._b.mp4", "mp4"])
    folder = (str(tmp_path),)
    assert names(list_files(folder, "video"), tmp_path) == ["a/z.MKV", "b.mp4"]
    assert names(list_files(folder, "motion"), tmp_path) == ["a/c.png", "a.jpg"]
    both = list_files(folder, "image")
    assert names(both, tmp_path) == ["a/c.png", "a/z.MKV", "a.jpg", "b.mp4"]
    assert [file.is_picture for file in both] == [True, False, True, False]


def test_sources_keep_their_order_and_a_named_file_needs_no_known_suffix(tmp_path):
    fill(tmp_path, ["one/a.mp4", "odd.jsv", "x.png"])
    found = list_files((str(tmp_path / "odd.jsv"), str(tmp_path / "one")), "video")
    assert names(found, tmp_path) == ["odd.jsv", "one/a.mp4"]
    with pytest.raises(UsageError, match="x.png holds no videos for a stream of kind video"):
        list_files((str(tmp_path / "x.png"),), "video")


def test_a_list_names_files_folders_and_shards_beside_itself(tmp_path):
    fill(tmp_path, ["lists/a.mp4", "lists/more/b.mp4", "c.mp4", "lists/p.png"])
    write_shard(tmp_path / "lists" / "s-1.tar", [("k.mp4", b"tar")])
    (tmp_path / "lists" / "all.txt").write_text(f"a.mp4\n\n  more \np.png\n{tmp_path}/c.mp4\ns-{{1..1}}.tar\n")
    found = list_files((str(tmp_path / "lists" / "all.txt"),), "video")
    assert names(found, tmp_path) == ["lists/a.mp4", "lists/more/b.mp4", "c.mp4", "lists/s-1.tar/k.mp4"]


def test_one_file_of_each_sample_of_a_shard_the_fitting_one(tmp_path):
    first = [("a.json", b"{}"), ("a.mp4", b"film a"), ("a.JPG", b"still a"), ("b.jpg", b"still b")]
    second = [("dir/c.low.webm", b"film c"), ("dir/c.txt", b"caption"), ("._a.mp4", b"finder")]
    write_shard(tmp_path / "train-00.tar", first)
    write_shard(tmp_path / "train-01.tar", second)
    source = (str(tmp_path / "train-{00..01}.tar"),)
    videos = list_files(source, "video")
    assert names(videos, tmp_path) == ["train-00.tar/a.mp4", "train-01.tar/dir/c.low.webm"]
    assert [content(file) for file in videos] == [b"film a", b"film c"]
    assert [content(file) for file in list_files(source, "image")] == [b"still a", b"still b", b"film c"]
    assert [content(file) for file in list_files(source, "motion")] == [b"still a", b"still b"]


def test_the_index_finds_what_webdataset_itself_reads(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
        for i in range(5):
            writer.write({"__key__": f"{i:03}", "mp4": bytes([i]) * (600 * i + 1), "txt": f"caption {i}"})
    read = [sample["mp4"] for sample in webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False)]
    assert [content(file) for file in list_files((str(tmp_path / "s.tar"),), "video")] == read


def test_errors_about_a_member_name_it_and_its_copy_is_gone(tmp_path):
    file = list_files((str(write_shard(tmp_path / "s.tar", [("a.mp4", b"film")])),), "video")[0]
    with pytest.raises(VideoError, match=f"^{tmp_path}/s.tar/a.mp4 is bad"):
        with file.opened() as path:
            assert path.suffix == ".mp4"
            raise VideoError(f"{path} is bad")
    assert not path.parent.exists()


def test_the_digest_is_of_the_content_wherever_it_lies(tmp_path):
    data = bytearray(range(256)) * 1000

    def digest(changed):
        (tmp_path / "f.mp4").write_bytes(changed)
        return MediaFile("f.mp4", tmp_path / "f.mp4", None, len(changed)).digest()

    whole = digest(data)
    assert len(whole) == 16 and whole == digest(bytes(data))
    member = list_files((str(write_shard(tmp_path / "s.tar", [("x.txt", b"1"), ("y.mp4", bytes(data))])),), "video")[0]
    assert member.digest() == whole
    first, last = bytearray(data), bytearray(data)
    first[0], last[-1] = 9, 9
    assert len({whole, digest(first), digest(last), digest(data + b"\0"), digest(b""), digest(b"\0")}) == 6


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("https://host/a-{0..3}.tar", "is not on this machine; fetch it first"),
        ("pipe:cat a.tar", "is not on this machine"),
        ("missing", "missing does not exist; correct sources"),
        ("missing.tar", "Shard .*missing.tar does not exist"),
        ("missing.txt", "List .*missing.txt cannot be read"),
        ("s-{0..1.tar", "is not a range of shards .*shard-{000..012}.tar"),
        ("s-${CVVAE_NOT_SET}.tar", "is not a range of shards"),
        ("packed.tar.gz", "is not a whole, uncompressed tar file"),
        ("cut.tar", "is not a whole, uncompressed tar file"),
        ("twice.tar", "two files of one suffix"),
        ("captions.tar", "holds no videos"),
        ("empty", "holds no videos for a stream of kind video; name another source"),
        ("nested.txt", "names another list, other.txt"),
        ("far.txt", "https://host/a.mp4 is not on this machine"),
        ("latin.txt", "cannot be read .*UTF-8"),
    ],
)
def test_wrong_sources_are_refused_in_one_sentence(tmp_path, source, words):
    (tmp_path / "empty").mkdir()
    with tarfile.open(tmp_path / "packed.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.mp4"))
    write_shard(tmp_path / "captions.tar", [("a.txt", b"caption")])
    write_shard(tmp_path / "twice.tar", [("a.mp4", b"1"), ("a.mp4", b"2")])
    write_shard(tmp_path / "cut.tar", [("a.mp4", bytes(5000))])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:3000])
    (tmp_path / "nested.txt").write_text("other.txt\n")
    (tmp_path / "far.txt").write_text("https://host/a.mp4\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9.mp4\n")
    local = source if ":" in source else str(tmp_path / source)
    with pytest.raises(UsageError, match=words) as caught:
        list_files((local,), "video")
    assert "\n" not in str(caught.value)
