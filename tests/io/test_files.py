"""Files that are whole or absent, and the errors of a disk that is full or refuses."""

import errno
import subprocess
import sys

import pytest

from wroformer_jax.errors import InputError
from wroformer_jax.io.files import check_space, disk_errors_named, exists, refuse_existing, replacing


def test_takes_the_name_when_the_block_ends(tmp_path):
    path = tmp_path / "a.json"
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:  # noqa: PT012 - the block is the test
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_anything_new(tmp_path):
    code = """if True:
        import os, pathlib, sys, tempfile
        os.umask(0o027)
        from wroformer_jax.io.files import open_to_others, replacing
        os.chdir(sys.argv[1])
        with replacing("a"):
            pass
        open_to_others(pathlib.Path(tempfile.mkdtemp(dir=".")).rename("b"))
        os.mkdir("c")
    """
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b").stat().st_mode == (tmp_path / "c").stat().st_mode


def test_what_exists(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    assert exists(tmp_path)
    assert exists(tmp_path / "file")
    for name in ("nowhere", "dangling", "file/inside"):
        assert not exists(tmp_path / name)


@pytest.mark.parametrize(("name", "reason"), [("x" * 300, "File name too long"), ("a\0b", "embedded null")])
def test_impossible_names(tmp_path, name, reason):
    with pytest.raises(InputError, match=f"cannot use the path .*: {reason}"):
        exists(tmp_path / name)


def test_existing_is_refused(tmp_path):
    refuse_existing(tmp_path / "a", overwrite=False)
    (tmp_path / "a").touch()
    refuse_existing(tmp_path / "a", overwrite=True)
    with pytest.raises(InputError, match=r"a exists already: .* --overwrite"):
        refuse_existing(tmp_path / "a", overwrite=False)


def test_space_on_the_disk(tmp_path):
    check_space(tmp_path, 0)
    with pytest.raises(OSError, match="MB are needed") as caught:
        check_space(tmp_path, 10**18)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"the disk is full \(No space left on device\)"),
        (ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes [os_error_code='28']"), "the disk is full"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "the disk is full"),
        (RuntimeError("write() failed: No space left on device; writing a; at byte 9"), "the disk is full"),
        (RuntimeError("write() failed: File too large; writing a; at byte 9"), "File too large"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
        (RuntimeError("I/O error: File too large (os error 27)"), "File too large"),
    ],
)
def test_disk_errors_are_named(error, reason):
    with pytest.raises(InputError, match=f"cannot write a.ckpt: {reason}"), disk_errors_named("a.ckpt"):
        raise error


def test_other_errors_keep_their_names():
    for error in (ValueError("a mistake of ours"), InputError("said already")):
        with pytest.raises(type(error), match=f"^{error}$"), disk_errors_named("a.ckpt"):
            raise error
