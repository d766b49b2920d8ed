"""Image headers built byte by byte: every field that is read, and every limit where it begins to hold."""

import struct
from typing import Any

import pytest

from cnnserve.errors import InvalidInput
from cnnserve.images.header import ImageHeader, check_structure, read_header

LIMIT = 10**9
SOI, EOI = b"\xff\xd8", b"\xff\xd9"


def refused(data: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_header(data)
    return str(caught.value)


def segment(marker: int, payload: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(payload)) + payload


def frame(width: int, height: int, marker: int = 0xC0, components: int = 3) -> bytes:
    parts = b"".join(bytes([part, 0x11, 0]) for part in range(components))
    return segment(marker, struct.pack(">BHHB", 8, height, width, components) + parts)


def scan(components: int = 3) -> bytes:
    return segment(0xDA, bytes([components]) + bytes(2 * components + 3))


def jpeg(*parts: bytes) -> ImageHeader:
    return read_header(SOI + b"".join(parts) + EOI)


APP = segment(0xE0, b"JFIF\0")


@pytest.mark.parametrize("marker", [*range(0xC0, 0xD0)])
def test_a_jpegs_frame(marker: int) -> None:
    if marker in (0xC4, 0xC8, 0xCC):
        # Tables: their content is not a size, so there is none.
        assert "0x0" in refused(SOI + APP + frame(300, 200, marker) + scan() + EOI)
        return
    header = jpeg(APP, frame(300, 200, marker), scan())
    assert (header.format, header.width, header.height) == ("JPEG", 300, 200)
    progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
    assert header.scans_at == (len(SOI + APP + frame(300, 200)) if progressive else 0)


def test_the_last_frame_and_the_first_scan_count() -> None:
    header = jpeg(frame(9, 9), frame(300, 200), scan(), frame(5, 5))
    assert (header.width, header.height, header.scans_at) == (300, 200, 0)
    assert jpeg(frame(9, 9, 0xC2), frame(300, 200), scan()).scans_at == 0


@pytest.mark.parametrize(("scanned", "several"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_scan_of_some_components_is_not_the_only_one(scanned: int, several: bool) -> None:
    header = jpeg(frame(30, 20), scan(scanned))
    assert (header.scans_at > 0) == several
    assert header.scans_at in (0, len(SOI + frame(30, 20)))


def test_fill_bytes_and_markers_without_length_are_passed_over() -> None:
    bare = b"".join(bytes([0xFF, marker]) for marker in (0x00, 0x01, *range(0xD0, 0xD9)))
    header = read_header(SOI + b"\xff\xff\xff" + APP[1:] + bare + b"\xff\xff" + frame(7, 6)[1:] + scan() + EOI)
    assert (header.width, header.height) == (7, 6)
    # Stray bytes between segments.
    assert read_header(SOI + APP + b"\x00\x12" + frame(7, 6) + scan()).width == 7


def test_a_jpeg_without_picture() -> None:
    assert "no image data" in refused(SOI + APP + EOI)
    # An end behind the scan is not looked for.
    assert jpeg(frame(7, 6), scan()).height == 6


@pytest.mark.parametrize("segments", [509, 510])
def test_a_jpeg_has_a_limited_number_of_segments(segments: int) -> None:
    header = jpeg(*[APP] * segments, frame(7, 6), scan())
    assert header.width == 7


def test_a_jpeg_with_more_segments_is_refused() -> None:
    assert "512" in refused(SOI + APP * 511 + frame(7, 6) + scan() + EOI)


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_jpeg_that_ends_in_its_header(cut: int) -> None:
    whole = SOI + APP + frame(300, 200) + scan()[:5]
    assert read_header(whole).width == 300
    assert "ends within its header" in refused(whole[: len(whole) - cut])


def png(width: int, height: int, *chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks)


def chunk(kind: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack(">I", len(data) if length is None else length) + kind + data + bytes(4)


def test_a_png() -> None:
    assert read_header(png(70_000, 3)) == ImageHeader("PNG", 70_000, 3)
    assert "does not begin with an IHDR chunk" in refused(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDX", bytes(13)))
    assert "does not begin with an IHDR chunk" in refused(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(12)))
    assert "ends within its header" in refused(png(7, 6)[:23])
    assert "ends within its header" in refused(png(7, 6)[:25])
    assert read_header(png(7, 6)[:26]).height == 6


@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3), (3, 1), (4, 2), (6, 4), (1, 4)])
@pytest.mark.parametrize("depth", [1, 8, 16])
def test_the_channels_of_a_png(color: int, channels: int, depth: int) -> None:
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 6, depth, color, 0, 0, 0))
    assert read_header(data) == ImageHeader("PNG", 7, 6, channels=channels, is_deep=depth == 16)


@pytest.mark.parametrize("components", [1, 3, 4])
def test_the_channels_of_a_jpeg(components: int) -> None:
    assert jpeg(frame(7, 6, components=components), scan(components)).channels == components


def check(data: bytes, pixel_limit: int = LIMIT) -> None:
    check_structure(read_header(data), data, pixel_limit)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_png_has_a_limited_number_of_compressed_texts(kind: bytes) -> None:
    check(png(7, 6, chunk(kind) * 128, chunk(b"IEND")))
    with pytest.raises(InvalidInput, match="128"):
        check(png(7, 6, chunk(kind) * 129, chunk(b"IEND")))
    # What is not compressed costs nothing, and what comes behind the end is not read.
    check(png(7, 6, chunk(b"tEXt") * 1000, chunk(kind) * 128, chunk(b"IEND"), chunk(kind) * 9))


def test_a_png_has_one_colour_profile() -> None:
    check(png(7, 6, chunk(b"iCCP"), chunk(b"IEND"), chunk(b"iCCP")))
    with pytest.raises(InvalidInput, match="colour profile"):
        check(png(7, 6, chunk(b"iCCP"), chunk(b"tEXt", b"between"), chunk(b"iCCP")))


def test_a_png_has_a_limited_number_of_chunks() -> None:
    # The header is one of them, the end another.
    check(png(7, 6, chunk(b"IDAT") * (2**16 - 2), chunk(b"IEND")))
    with pytest.raises(InvalidInput, match="65536"):
        check(png(7, 6, chunk(b"IDAT") * (2**16 - 1), chunk(b"IEND")))


@pytest.mark.parametrize("rest", [0, 1, 7])
def test_a_png_that_ends_between_chunks_is_the_decoders_affair(rest: int) -> None:
    check(png(7, 6, chunk(b"IDAT", b"some"), chunk(b"iCCP")[:rest]))
    check(png(7, 6, chunk(b"IDAT", length=2**32 - 1), chunk(b"iCCP") * 2))


def webp(kind: bytes, payload: bytes) -> bytes:
    return b"RIFF" + bytes(4) + b"WEBP" + kind + bytes(4) + payload


def lossy(width: int, height: int) -> bytes:
    return webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height))


def lossless(width: int, height: int, flags: int = 0) -> bytes:
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14 | flags << 28) + bytes(5))


def extended(width: int, height: int, flags: int = 0) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X", bytes([flags, 0, 0, 0]) + sizes)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (lossy(300, 200), (300, 200)),
        # Two bits of each are the scale at which it is to be shown.
        (lossy(300 | 0x4000, 200 | 0xC000), (300, 200)),
        (lossy(16383, 1), (16383, 1)),
        (lossless(300, 200), (300, 200)),
        (lossless(16384, 1, 15), (16384, 1)),
        (lossless(1, 16384), (1, 16384)),
        (extended(70_000, 2), (70_000, 2)),
        (extended(1, 2**24), (1, 2**24)),
    ],
)
def test_a_webp(data: bytes, size: tuple[int, int]) -> None:
    assert len(data) == 30
    header = read_header(data)
    assert (header.format, header.width, header.height) == ("WEBP", *size)
    assert "ends within its header" in refused(data[:29])


@pytest.mark.parametrize(
    ("data", "channels", "is_lossless"),
    [
        (lossy(7, 6), 3, False),
        (lossless(7, 6), 3, True),
        (lossless(7, 6, 1), 4, True),
        # Whether it is lossless is said later in the file.
        (extended(7, 6), 3, True),
        (extended(7, 6, 0xEF), 3, True),
        (extended(7, 6, 0x10), 4, True),
    ],
)
def test_what_a_webp_says_of_its_decoder(data: bytes, channels: int, *, is_lossless: bool) -> None:
    header = read_header(data)
    assert (header.channels, header.is_lossless) == (channels, is_lossless)


def test_a_webp_of_another_kind() -> None:
    assert "b'ANIM'" in refused(webp(b"ANIM", bytes(30)))
    # A WebP's own size may hold line feeds.
    assert read_header(b"RIFF\n\n\n\nWEBP" + lossy(7, 6)[12:]).width == 7


def bmp(size: int, *fields: int, form: str = "<iiHHI") -> bytes:
    return b"BM" + bytes(12) + struct.pack("<I", size) + struct.pack(form, *fields)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (bmp(12, 300, 200, form="<HH"), (300, 200)),
        (bmp(40, 300, 200, 1, 24, 0), (300, 200)),
        (bmp(40, 300, -200, 1, 24, 0), (300, 200)),
        (bmp(124, 70_000, 3, 1, 24, 3), (70_000, 3)),
    ],
)
def test_a_bmp(data: bytes, size: tuple[int, int]) -> None:
    assert read_header(data) == ImageHeader("BMP", *size)
    assert "ends within its header" in refused(data[:-1])


@pytest.mark.parametrize("header_bytes", [40, 108, 124])
def test_a_bitmap_as_clipboards_hold_it(header_bytes: int) -> None:
    without_the_header_of_the_file = bmp(header_bytes, 300, 200, 1, 24, 0)[14:]
    assert read_header(without_the_header_of_the_file) == ImageHeader("DIB", 300, 200)


@pytest.mark.parametrize("compression", [1, 2])
def test_a_compressed_bmp(compression: int) -> None:
    assert "compressed" in refused(bmp(40, 300, 200, 1, 8, compression))


def gif(width: int, height: int, *blocks: bytes, flags: int = 0) -> bytes:
    # Who took the colours for blocks would see the end of the file.
    table = b"\x3b" * (3 << (flags & 7) + 1) if flags & 0x80 else b""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0) + table + b"".join(blocks)


def picture(left: int = 0, top: int = 0, width: int = 1, height: int = 1) -> bytes:
    return b"\x2c" + struct.pack("<HHHHB", left, top, width, height, 0)


def extension(*parts: bytes) -> bytes:
    return b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"


@pytest.mark.parametrize("version", [b"GIF87a", b"GIF89a"])
@pytest.mark.parametrize("flags", [0x00, 0x07, 0x80, 0x83, 0x87])
def test_a_gif(version: bytes, flags: int) -> None:
    data = version + gif(300, 200, extension(b"a", b"bc" * 100), extension(), picture(), flags=flags)[6:]
    assert read_header(data) == ImageHeader("GIF", 300, 200)
    assert "ends within its header" in refused(data[:-2])


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        ((0, 0, 10, 10), (10, 10)),
        ((1, 0, 10, 10), (11, 10)),
        ((0, 1, 10, 10), (10, 11)),
        ((5, 4, 6, 9), (11, 13)),
        ((0, 0, 3, 3), (10, 10)),
    ],
)
def test_the_first_frame_of_a_gif_may_enlarge_it(frame: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    header = read_header(gif(10, 10, picture(*frame), picture(0, 0, 99, 99)))
    assert (header.width, header.height) == size


def test_a_gif_without_picture() -> None:
    assert "no image data" in refused(gif(10, 10, extension(b"\x2c\x3b"), b"\x3b", picture()))
    # Stray bytes between blocks.
    assert read_header(gif(10, 10, b"\x01\x02", picture())).width == 10


def test_a_gif_has_a_limited_number_of_blocks() -> None:
    assert read_header(gif(10, 10, b"\x01" * 4095, picture())).width == 10
    assert "4096" in refused(gif(10, 10, b"\x01" * 4096, picture()))
    # Each part of an extension is one, its beginning and its end, too.
    assert read_header(gif(10, 10, extension(*[b"x"] * 4093), picture())).width == 10
    assert "4096" in refused(gif(10, 10, extension(*[b"x"] * 4094), picture()))


def scans(count: int, *, data: bytes = b"\x01\x02\xff\x00\xff\xd0\x03") -> bytes:
    return SOI + frame(100, 50, 0xC2) + (scan() + data) * count + EOI


def test_every_scan_of_a_jpeg_passes_over_all_pixels() -> None:
    check(scans(1000))
    with pytest.raises(InvalidInput, match="1001"):
        check(scans(1001))
    # 16 passes over as many pixels as there may be are taken.
    check(scans(32), 100 * 50 * 2)
    with pytest.raises(InvalidInput, match="100x50"):
        check(scans(33), 100 * 50 * 2)


def test_what_is_no_scan_is_not_counted() -> None:
    tables = segment(0xC4, b"\xff\xda" * 100)
    check(SOI + frame(100, 50, 0xC2) + (scan() + tables) * 2 + EOI + scan() * 100, 100 * 50 // 8)
    with pytest.raises(InvalidInput, match="3 scans"):
        check(SOI + frame(100, 50, 0xC2) + (scan() + tables + b"\xff\xff") * 3 + EOI, 100 * 50 // 8)
    # The last marker may have no length any more.
    check(SOI + frame(100, 50, 0xC2) + scan() + b"\xff\xc4", LIMIT)
    check(SOI + frame(100, 50, 0xC2) + scan() + b"\xff\xc4\x00", LIMIT)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"....ftypavis", "AVIF"),
        (b"\n...ftypmif1", "HEIC"),
        (b"\0\0\0\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xff\x0a", "JPEG XL"),
        (b"8BPS", "Photoshop"),
        (b"\0\0\x01\0", "ICO"),
        (b"%PDF", "PDF"),
        (b"P6\n", "PNM"),
        (b"\xef\xbb\xbf  <SVG", "SVG, XML or HTML"),
        (b"<!doctype html>", "SVG, XML or HTML"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, name: str) -> None:
    said = refused(data)
    assert f"is {name}," in said
    assert "JPEG, PNG, WEBP, BMP or GIF" in said


def test_what_nobody_knows_is_shown() -> None:
    assert "empty" in refused(b"")
    said = refused(b"hello, world")
    assert "12 bytes" in said
    assert "b'hello, w'" in said
    assert "JPEG, PNG, WEBP, BMP or GIF" in said


@pytest.mark.parametrize(
    "data",
    [
        SOI + segment(0xE1, bytes(65_533)) + frame(40_000, 50_000) + scan() + EOI,
        png(2**31 + 40_000, 2**31 + 50_000),
        bmp(12, 40_000, 50_000, form="<HH"),
        gif(40_000, 50_000, picture()),
        gif(1, 1, picture(0, 0, 40_000, 50_000)),
        gif(1, 1, picture(39_000, 49_000, 1_000, 1_000)),
    ],
    ids=["jpeg", "png", "bmp", "gif", "gif frame", "gif offset"],
)
def test_large_numbers_are_not_negative(data: bytes) -> None:
    header = read_header(data)
    assert (header.width % 2**31, header.height % 2**31) == (40_000, 50_000)


@pytest.mark.parametrize(
    "make",
    [png, lambda width, height: bmp(12, width, height, form="<HH"), lossy, lambda w, h: gif(w, h, picture(0, 0, w, h))],
)
def test_neither_side_is_0(make: Any) -> None:
    assert read_header(make(7, 6)).width == 7
    for width, height in ((0, 6), (7, 0), (0, 0)):
        assert f"{width}x{height}" in refused(make(width, height))


def test_a_marker_without_length_is_two_bytes_long() -> None:
    header = read_header(SOI + b"\xff\xd0" + frame(7, 6) + scan() + EOI)
    assert (header.width, header.height) == (7, 6)


def test_a_long_segment_between_scans_is_passed_over() -> None:
    tables = segment(0xC4, b"\xff\xda" * 30_000)
    check(SOI + frame(100, 50, 0xC2) + (scan() + tables) * 2 + EOI, 100 * 50 // 8)


@pytest.mark.parametrize(("rest", "said"), [(7, ""), (8, "colour profile"), (9, "colour profile")])
def test_a_chunk_counts_as_soon_as_its_kind_is_there(rest: int, said: str) -> None:
    data = png(7, 6, chunk(b"iCCP"), chunk(b"iCCP")[:rest])
    if not said:
        check(data)
        return
    with pytest.raises(InvalidInput, match=said):
        check(data)


def test_a_chunk_of_two_gibibytes_is_passed_over_forwards() -> None:
    check(png(7, 6, chunk(b"IDAT", length=2**31), chunk(b"iCCP") * 2))
