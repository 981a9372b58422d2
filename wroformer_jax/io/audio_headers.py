"""Reads the length that the headers of audio files promise, so that a truncated recording is noticed.

libsndfile silently shortens a truncated wav, ogg or mp3, and an mp3 whose length it has to guess; nobody should
separate half a song without noticing. FLAC needs no code here: libsndfile itself fails when the end of such a file is
missing.

Sources: RIFF and RF64 (EBU Tech 3306), AIFF (Apple, 1989), Ogg pages (RFC 3533, section 6), frame headers of
MPEG audio (ISO 11172-3 and 13818-3), and the Xing, Info or VBRI index that mp3 encoders put into the first frame.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

_UNKNOWN = (0, 0xFFFFFFFF)  # sizes that programs write when they write to a pipe, where they cannot seek back
_OGG_PAGE_MAX = 65307  # bytes
_OGG_PAGE_HEADER = 27  # bytes, before the table of segment lengths
_MP3_HEAD = 65536  # bytes after the ID3v2 tag that are searched for the first frame
_MP3_INDEX_MAX = 256  # bytes of the first frame that can hold the beginning of an index
_KBITS_MPEG_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_MPEG_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def promised_bytes(path: Path) -> int:
    """Returns the least size in bytes that a whole copy of the file has; 0 if its header does not say."""
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

    Decoders guess the length of such a file from its size and the bit rate of its first frame, which is wrong.
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
    """Returns the offset at which the chunk `samples_id` of an open RIFF, RF64, RIFX or AIFF file ends."""
    long_size = None  # RF64 stores the size of the samples in a chunk of its own, in 64 bits
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
    """Returns the offset at which the last Ogg page should end; in a truncated file it lies behind the end."""
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
    """Returns the offset at which an mp3 ends according to its index; 0 without an index."""
    start, head = _first_mp3_frame(file)
    index = _mp3_index(head)
    if index is None:
        return 0
    flags = head[index + 7]
    if head[index:][:4] == b"VBRI":
        at = index + 10
    elif flags & 2:  # the index has the size in bytes, after the number of frames if it has that too
        at = index + 8 + 4 * (flags & 1)
    else:
        return 0
    return start + struct.unpack(">I", head[at : at + 4])[0] if len(head) >= at + 4 else 0


def _first_mp3_frame(file: BinaryIO) -> tuple[int, bytes]:
    """Returns the offset of the first frame of an mp3, and the first bytes of that frame, which can hold an index."""
    file.seek(0)
    start = 0
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:
        # The size of an ID3v2 tag is 28 bits, seven in each of four bytes.
        start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    file.seek(start)
    head = file.read(_MP3_HEAD)
    # Some programs leave padding after the tag.
    skipped = next((i for i in range(len(head) - 4) if _mp3_frame(head[i : i + 4]) is not None), len(head))
    return start + skipped, head[skipped:][:_MP3_INDEX_MAX]


def _mp3_index(head: bytes) -> int | None:
    """Returns the offset of the index in the first frame; None without an index."""
    found = [at for name in (b"Xing", b"Info", b"VBRI") if (at := head.find(name)) >= 0]
    return min(found) if found and min(found) + 8 <= len(head) else None


def _mp3_frame(header: bytes) -> tuple[int, int] | None:
    """Returns bytes and kbit/s of the MPEG layer III frame with this header of four bytes; None if it is no header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version = header[1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    bit_rate_index, rate_index, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or rate_index == 3 or bit_rate_index in (0, 15):
        return None
    bit_rate = (_KBITS_MPEG_1 if version == 3 else _KBITS_MPEG_2)[bit_rate_index - 1]
    sample_rate = (44100, 48000, 32000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    return (144 if version == 3 else 72) * 1000 * bit_rate // sample_rate + padding, bit_rate
