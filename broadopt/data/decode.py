"""One image file of any usual kind as 32x32 RGB, and what had to be done to it."""

import io
import struct
import warnings
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SIDE = 32

# Not all that Pillow knows: some of its formats, such as EPS, start other programs to be decoded.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (*(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"), *(".ppm", ".pgm", ".pbm", ".pnm"))

TURNED = "turned upright as their EXIF says"
TRANSPARENT = "transparent, laid over white"
DEEP = "grey of 16 bits, scaled to 8"
FRAMES = "of several frames, the first taken"
RESIZED = f"resized to {SIDE}x{SIDE}: the shorter side to {SIDE}, the middle of the longer"
MODES = {"1": "black and white", "L": "grey", "LA": "grey", "P": "of a palette", "PA": "of a palette", "CMYK": "CMYK"}


class UnreadableImage(ValueError):
    """Bytes that are no image, or none that can be read here; why is said in a line."""


def is_image(content: bytes) -> bool:
    """Whether `content` begins as an image of FORMATS does."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(io.BytesIO(content), formats=FORMATS).close()
    except UnidentifiedImageError:
        return False
    except _errors():  # one, but damaged
        return True
    return True


def decode(content: bytes) -> tuple[np.ndarray, list[str]]:
    """An image file's content as uint8 [32, 32, 3], and the words above for what was done to it.

    The aspect ratio is kept: the largest square in the middle is resized, bilinear, which in Pillow averages over the
    whole area when it shrinks. Colour profiles are ignored. Raises UnreadableImage.
    """
    from PIL import Image, ImageOps

    done: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                done += [FRAMES] if getattr(picture, "is_animated", False) else []
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                done += [TURNED] if picture.getexif().get(0x0112, 1) in range(2, 9) else []
                coloured, changes = _as_rgb(upright, picture.format)
                done += [*changes, *([RESIZED] if coloured.size != (SIDE, SIDE) else [])]
                return np.asarray(ImageOps.fit(coloured, (SIDE, SIDE), Image.Resampling.BILINEAR)), done
    except _errors() as error:
        raise UnreadableImage(" ".join(str(error).split()) or type(error).__name__) from error


def _as_rgb(picture: "Image.Image", kind: str | None) -> tuple["Image.Image", list[str]]:
    """A loaded image, out of a file of this kind, in RGB; and what was done to it."""
    from PIL import Image

    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PNG", "PPM")):
        # 65535 is white, as 255 is: 257 levels to one. Pillow's own conversion clips at 255.
        levels = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB"), [DEEP]
    if picture.mode in ("I", "F"):
        raise UnreadableImage(f"mode {picture.mode}, whose range is not known; expected 8 or 16 bits a channel")
    changes = [MODES[picture.mode]] if picture.mode in MODES else []
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        layer = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        if np.asarray(layer)[..., 3].min() < 255:
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layer).convert("RGB"), [*changes, TRANSPARENT]
        return layer.convert("RGB"), changes
    return picture.convert("RGB"), changes


def _errors() -> tuple[type[BaseException], ...]:
    """What Pillow raises on damaged files; SyntaxError is its way to reject a PNG or a TIFF."""
    from PIL import Image

    return (
        *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError),
        *(AssertionError, RuntimeError, MemoryError, struct.error, zlib.error),
        *(Image.DecompressionBombError, Image.DecompressionBombWarning),
    )
