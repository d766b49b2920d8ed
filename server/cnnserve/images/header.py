"""Reads the format and size of an image file from its header, before a decoder sees the file.

Decoders allocate the memory that a header claims, and nothing limits the time that they spend on metadata. So the size
is read here in a limited number of steps, and a file with more metadata than any real file is refused. The formats are
described in ITU-T T.81 Annex B (JPEG), PNG (Third Edition) 5, GIF89a 17 to 24, RFC 9649 (WebP) and Windows'
BITMAPINFOHEADER (BMP).
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

from cnnserve.errors import InvalidInput

# Attackers may exploit the faults of decoders, so the server reads only formats that people really send.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")

# Limits far above the numbers in real files. Extended XMP data of several MB take a few hundred segments of 64 KiB.
_JPEG_SEGMENTS = 512
_JPEG_SCANS = 1000
_GIF_BLOCKS = 4096
_PNG_CHUNKS = 2**16
_PNG_TEXTS = 128
_BMP_HEADER = 14

# How base64 of PNG, JPEG, WebP and GIF begins, and what browsers put before it.
_BASE64 = re.compile(rb"data:image/[\w.+-]+;base64,|iVBORw0KGgo|/9j/|UklGR|R0lGOD")
_REFUSED = (
    (re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), "TIFF"),
    (re.compile(rb"....ftyp(avif|avis)", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\0\0\x01\0"), "ICO"),
    (re.compile(rb"%PDF"), "PDF"),
    (re.compile(rb"P[1-7]\s"), "PNM"),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|svg|!DOCTYPE|html)", re.IGNORECASE), "SVG, XML or HTML"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer"),
)
_JPEG_SIZED = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_JPEG_BARE = (0x00, 0x01, *range(0xD0, 0xD9))
# In the compressed data of a JPEG, FF is followed by 00 or belongs to a restart marker. Any other FF begins a marker
# that ends the data.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
# PNG's colour types: grey, RGB, palette, and the first two with transparency.
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Flags of a WebP: in the first word of its lossless form, and of its extended form.
_VP8L_ALPHA, _VP8X_ALPHA = 1 << 28, 0x10


@dataclass(frozen=True)
class ImageHeader:
    """Format and size of a file, and what decides how much memory its decoder takes.

    `scans_at`: position of the first scan if a JPEG has several scans, else 0. `channels`: of the pixels in the file.
    `is_deep`: a PNG has 16 bits a channel. `is_lossless`: a WebP is or may be lossless.
    """

    format: str
    width: int
    height: int
    scans_at: int = 0
    channels: int = 3
    is_deep: bool = False
    is_lossless: bool = False

    @property
    def pixels(self) -> int:
        """Number of pixels: width times height."""
        return self.width * self.height


def read_header(data: bytes) -> ImageHeader:
    """Returns format and size. Takes microseconds, even if the file is large. Raises `InvalidInput`."""
    if not data:
        raise InvalidInput("the image is empty (0 bytes)")
    for signature, read in _READERS:
        if signature.match(data):
            try:
                header = read(data)
            except (struct.error, IndexError) as error:
                raise InvalidInput("the image is damaged: it ends within its header") from error
            if header.width < 1 or header.height < 1:
                raise InvalidInput(f"the image is damaged: its size is {header.width}x{header.height}")
            return header
    for signature, name in _REFUSED:
        if signature.match(data):
            raise InvalidInput(f"the image is {name}, which this server does not read; send {_expected()}")
    if _BASE64.match(data):
        raise InvalidInput(
            'the image is base64 text; decode it before you send it, or send it over HTTP as JSON, {"b64": TEXT}, to '
            ":classify or :predict"
        )
    raise InvalidInput(
        f"the {len(data)} bytes, which begin with {data[:8]!r}, are not an image that this server reads; "
        f"send {_expected()}"
    )


def check_structure(header: ImageHeader, data: bytes, pixel_limit: int) -> None:
    """Raises `InvalidInput` if decoding would take far longer than the size suggests. Takes up to a few ms."""
    if header.format == "PNG":
        _check_chunks(data)
    elif header.scans_at:
        # Each scan of a progressive JPEG visits all pixels.
        scans = _count_scans(data, header.scans_at)
        if scans > _JPEG_SCANS or scans * header.pixels > 16 * pixel_limit:
            size = f"{header.width}x{header.height}"
            raise InvalidInput(f"the JPEG has at least {scans} scans of {size} pixels; save it with fewer scans")


def _expected() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _jpeg(data: bytes) -> ImageHeader:
    position, width, height, components, progressive = 2, 0, 0, 0, False
    for _ in range(_JPEG_SEGMENTS):
        # There may be fill bytes between segments.
        if data[position] != 0xFF or data[position + 1] == 0xFF:
            position += 1
            continue
        marker = data[position + 1]
        if marker == 0xDA:
            several = progressive or data[position + 4] < components
            return ImageHeader("JPEG", width, height, position if several else 0, components)
        if marker == 0xD9:
            raise InvalidInput("the image is damaged: it has no image data")
        if marker in _JPEG_SIZED:
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            progressive = marker in _JPEG_PROGRESSIVE
        position += 2 if marker in _JPEG_BARE else 2 + struct.unpack_from(">H", data, position + 2)[0]
    raise InvalidInput(
        f"the JPEG has more than {_JPEG_SEGMENTS} segments before its image data; save it with less metadata"
    )


def _count_scans(data: bytes, position: int) -> int:
    scans = 0
    while scans <= _JPEG_SCANS and (match := _JPEG_MARKER.search(data, position)):
        marker, position = data[match.end() - 1], match.end()
        if marker == 0xD9:
            break
        scans += marker == 0xDA
        if marker not in _JPEG_BARE and position + 2 <= len(data):
            position += struct.unpack_from(">H", data, position)[0]
    return scans


def _png(data: bytes) -> ImageHeader:
    if data[8:16] != b"\0\0\0\rIHDR":
        raise InvalidInput("the image is damaged: the PNG does not begin with an IHDR chunk")
    width, height, depth, color = struct.unpack_from(">IIBB", data, 16)
    # An unknown colour type is refused by the decoder.
    return ImageHeader("PNG", width, height, channels=_PNG_CHANNELS.get(color, 4), is_deep=depth == 16)


def _check_chunks(data: bytes) -> None:
    # Pillow decompresses each colour profile, up to 1 MB, but a valid file has only one. It also decompresses texts. It
    # limits their total size, but counts a text with a wrong checksum as empty after it has decompressed it.
    position, profiles, texts = 8, 0, 0
    for _ in range(_PNG_CHUNKS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return
        profiles += kind == b"iCCP"
        if profiles > 1:
            raise InvalidInput("the PNG has more than one colour profile; save it with one or none")
        texts += kind in (b"zTXt", b"iTXt")
        if texts > _PNG_TEXTS:
            raise InvalidInput(
                f"the PNG has more than {_PNG_TEXTS} compressed or international texts; send it without them"
            )
        position += 12 + length
    raise InvalidInput(f"the PNG has more than {_PNG_CHUNKS} chunks; save it with fewer")


def _webp(data: bytes) -> ImageHeader:
    kind, alpha = data[12:16], False
    if kind == b"VP8X":
        alpha = bool(data[20] & _VP8X_ALPHA)
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        alpha = bool(bits & _VP8L_ALPHA)
    elif kind == b"VP8 ":
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    else:
        raise InvalidInput(f"the image is damaged: a WebP cannot begin with the chunk {kind!r}")
    if len(data) < 30:
        raise InvalidInput("the image is damaged: it ends within its header")
    return ImageHeader("WEBP", width, height, channels=4 if alpha else 3, is_lossless=kind != b"VP8 ")


def _bmp(data: bytes) -> ImageHeader:
    size = struct.unpack_from("<I", data, 14)[0]
    if size == 12:
        return ImageHeader("BMP", *struct.unpack_from("<HH", data, 18))
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression in (1, 2):
        raise InvalidInput("the BMP is compressed (RLE), which this server does not read; send it as PNG")
    # If the height is negative, the rows are stored from top to bottom.
    return ImageHeader("BMP", width, abs(height))


def _dib(data: bytes) -> ImageHeader:
    """A BMP without the header of the file, as clipboards hold it."""
    return replace(_bmp(bytes(_BMP_HEADER) + data[:64]), format="DIB")


def _gif(data: bytes) -> ImageHeader:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    extension = False
    for _ in range(_GIF_BLOCKS):
        block = data[position]
        if extension:
            # A sub-block begins with its length. An empty sub-block ends the extension.
            position += 1 + block
            extension = block != 0
        elif block == 0x2C:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, position + 1)
            # If the first frame reaches beyond the canvas, decoders enlarge the canvas.
            return ImageHeader("GIF", max(width, left + frame_width), max(height, top + frame_height))
        elif block == 0x3B:
            raise InvalidInput("the image is damaged: it has no image data")
        else:
            # An extension begins with an introducer and a label. Any other byte here is skipped alone.
            extension = block == 0x21
            position += 1 + extension
    raise InvalidInput(f"the GIF has more than {_GIF_BLOCKS} blocks before its first frame; save it with less metadata")


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], ImageHeader]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"[\x28\x6c\x7c]\0\0\0"), _dib),
)
