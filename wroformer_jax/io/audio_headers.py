"""What audio files say of their own length, so that a recording which would lose its end is noticed.

libsndfile shortens a truncated wav, ogg or mp3 without a word, and an mp3 whose length it has to guess; somebody
who separates half a song should hear of it. FLAC is not here: libsndfile itself fails on the missing end of one.

Sources: RIFF and RF64 (EBU Tech 3306), AIFF (Apple, 1989), Ogg pages (RFC 3533, section 6), frame headers of
MPEG audio (ISO 11172-3 and 13818-3), and the Xing, Info or VBRI index that mp3 encoders put into the first frame.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

_UNKNOWN = (0, 0xFFFFFFFF)  # sizes that programs write into a pipe, where they cannot go back
_OGG_PAGE_MAX = 65307  # bytes
_OGG_PAGE_HEADER = 27  # bytes, before the table of segment lengths
_MP3_HEAD = 65536  # bytes after the ID3v2 tag in which the first frame is looked for
_MP3_INDEX_MAX = 256  # bytes of the first frame that can hold the beginning of an index
_KBITS_MPEG_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_MPEG_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def promised_bytes(path: Path) -> int:
    """The smallest size in bytes that a whole copy of the file can have; 0 where the format does not say."""
    with path.open("rb") as file:
        magic = file.read(4)
        if magic in (b"RIFF", b"RF64"):
            return _end_of_samples(file, "<", b"data")
        if magic in (b"RIFX", b"FORM"):
            return _end_of_samples(file, ">", b"data" if magic == b"RIFX" else b"SSND")
        if magic == b"OggS":
            return _end_of_last_ogg_page(file, path.stat().st_size)
        return 0 if magic == b"fLaC" else _end_by_mp3_index(file)


def is_mp3_of_unknown_length(path: Path) -> bool:
    """Whether an mp3 has frames of different bit rates and no index.

    Decoders guess the length of such a file from its size and the bit rate of its first frame.
    """
    with path.open("rb") as file:
        start, head = _first_mp3_frame(file)
        if _mp3_index(head) is not None:
            return False
        bit_rates = set()
        file.seek(start)
        while len(bit_rates) < 2 and (frame := _mp3_frame(file.read(4))) is not None:
            frame_bytes, bit_rate = frame
            bit_rates.add(bit_rate)
            file.seek(frame_bytes - 4, os.SEEK_CUR)
        return len(bit_rates) > 1


def _end_of_samples(file: BinaryIO, byte_order: str, samples_id: bytes) -> int:
    """Where the chunk `samples_id` of an open RIFF, RF64, RIFX or AIFF file ends."""
    long_size = None  # RF64 says the size of the samples in a chunk of its own, in 64 bits
    file.seek(12)
    while len(header := file.read(8)) == 8:
        name, size = header[:4], struct.unpack(f"{byte_order}I", header[4:])[0]
        if name == samples_id:
            if size == 0xFFFFFFFF and long_size is not None:
                return file.tell() + long_size
            return 0 if size in _UNKNOWN else file.tell() + size
        body = file.tell()
        if name == b"ds64" and len(sizes := file.read(16)) == 16:
            long_size = struct.unpack("<8xQ", sizes)[0]
        file.seek(body + size + size % 2)  # chunks start at even offsets
    return 0


def _end_of_last_ogg_page(file: BinaryIO, file_bytes: int) -> int:
    """Where the page that begins last ends: a cut leaves a page whose end is missing."""
    tail_start = max(0, file_bytes - 2 * _OGG_PAGE_MAX)
    file.seek(tail_start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0:
        return 0
    segments = page + _OGG_PAGE_HEADER
    if segments > len(tail):
        return tail_start + segments
    count = tail[segments - 1]
    return tail_start + segments + count + sum(tail[segments : segments + count])


def _end_by_mp3_index(file: BinaryIO) -> int:
    """Where the stream of an mp3 ends by its index; 0 for one without."""
    start, head = _first_mp3_frame(file)
    index = _mp3_index(head)
    if index is None:
        return 0
    flags = head[index + 7]
    if head[index:][:4] == b"VBRI":
        at = index + 10
    elif flags & 2:  # the size in bytes is there,
        at = index + 8 + 4 * (flags & 1)  # behind the number of frames if that is there too
    else:
        return 0
    return start + struct.unpack(">I", head[at : at + 4])[0] if len(head) >= at + 4 else 0


def _first_mp3_frame(file: BinaryIO) -> tuple[int, bytes]:
    """Where the first frame of an mp3 begins, and the bytes from there on that can hold an index."""
    file.seek(0)
    start = 0
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:
        # The size of an ID3v2 tag is 28 bits, seven in each of four bytes.
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    file.seek(start)
    head = file.read(_MP3_HEAD)
    # Taggers leave padding behind a tag.
    skipped = next((i for i in range(len(head) - 4) if _mp3_frame(head[i : i + 4]) is not None), len(head))
    return start + skipped, head[skipped:][:_MP3_INDEX_MAX]


def _mp3_index(head: bytes) -> int | None:
    """Where the index stands in a first frame."""
    found = [at for name in (b"Xing", b"Info", b"VBRI") if (at := head.find(name)) >= 0]
    return min(found) if found and min(found) + 8 <= len(head) else None


def _mp3_frame(header: bytes) -> tuple[int, int] | None:
    """Bytes and kbit/s of the MPEG layer III frame with this header of four bytes; None if it is not one."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version = header[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    bit_rate_index, rate_index, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or rate_index == 3 or bit_rate_index in (0, 15):
        return None
    bit_rate = (_KBITS_MPEG_1 if version == 3 else _KBITS_MPEG_2)[bit_rate_index - 1]
    sample_rate = (44100, 48000, 32000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    return (144 if version == 3 else 72) * 1000 * bit_rate // sample_rate + padding, bit_rate
