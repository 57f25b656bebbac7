"""Image files of every kind, good and bad, made here."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

EXIF_ORIENTATION = 274


def picture(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path, array=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if array is None else array).save(path, **options)
    return path


def write_video(path, num=5, rate=12.5, frames=None):
    """Frames, by default as many whose grey level is 40 times their number."""
    frames = frames or [np.full((48, 64, 3), 40 * index % 256, np.uint8) for index in range(num)]
    codec = "MJPG" if path.suffix == ".avi" else "mp4v"
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, size)
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def png_of_size(width, height):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def bad_files(folder):
    """Name of each bad file, and what the message must say."""
    good = save(folder / "good.png").read_bytes()
    jpg = save(folder / "good.jpg", picture(200, 300)).read_bytes()
    nan = np.full((4, 4), np.nan, dtype=np.float32)
    Image.fromarray(nan).save(folder / "nan.tif")
    contents = {
        "empty.png": (b"", "empty"),
        "text.jpg": (b"no image at all", "not an image"),
        "half.png": (good[: len(good) // 2], "truncated"),
        "half.jpg": (jpg[: len(jpg) // 2], "truncated"),
        "bomb.png": (png_of_size(20000, 20000), "limit"),
        "large.png": (png_of_size(9000, 9000), "limit"),
        "start_a_program.png": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
            "not an image",
        ),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: reason for name, (_, reason) in contents.items()} | {"nan.tif": "not finite"}


def scene():
    """(48, 64, 3): a slope from left to right, with a red corner at the top left."""
    pixels = np.linspace(20, 235, 64).astype(np.uint8)[None, :, None].repeat(48, 0).repeat(3, 2)
    pixels[:16, :16] = (250, 10, 10)
    return pixels


def lay_down(pixels, orientation):
    """What a camera stores so that this orientation of EXIF makes the picture upright again."""
    stored = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }.get(orientation, pixels)
    return np.ascontiguousarray(stored)


def good_pictures(folder):
    """Files that show `scene()`, except for those that "grey" or "size" is said of, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    rgb = Image.fromarray(scene())
    alpha = np.concatenate([scene(), np.full((48, 64, 1), 90, np.uint8)], axis=2)
    says = {}

    def add(name, image, *what, **options):
        image.save(folder / name, **options)
        says[name] = set(what)

    for orientation in (*range(1, 9), 9):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        stored = Image.fromarray(lay_down(scene(), orientation))
        add(f"exif_{orientation}.jpg", stored, exif=exif, quality=95)
    add("plain.png", rgb)
    add("plain.jpg", rgb, "lossy")
    add("progressive.jpg", rgb, "lossy", progressive=True)
    add("alpha.png", Image.fromarray(alpha))
    add("palette.png", rgb.quantize(256))
    add("cmyk.jpg", rgb.convert("CMYK"), "lossy")
    add("grey.png", rgb.convert("L"), "grey")
    add("grey_alpha.png", rgb.convert("LA"), "grey")
    grey = np.asarray(rgb.convert("L"))
    add("grey_16.png", Image.fromarray(grey.astype(np.uint16) * 257), "grey")
    add("float.tif", Image.fromarray(grey.astype(np.float32) / 255), "grey")
    blue = Image.new("RGB", (64, 48), (0, 0, 255))
    add("animated.gif", rgb.quantize(256), save_all=True, append_images=[blue, blue])
    add("pages.tif", rgb, save_all=True, append_images=[blue])
    add("plain.webp", rgb, "lossy")
    add("plain.bmp", rgb)
    add("name with spaces é 猫.png", rgb)
    add("no_extension", rgb, format="PNG")
    add("really_a_png.jpg", rgb, format="PNG")
    add("1x1.png", Image.new("RGB", (1, 1), (9, 8, 7)), "size")
    add("8000x40.jpg", Image.new("RGB", (8000, 40), (9, 80, 7)), "size")
    add("40x8000.png", Image.new("RGB", (40, 8000), (9, 80, 7)), "size")
    return says


def bad_pictures(folder):
    """`bad_files` and others: what must be said of each."""
    reasons = bad_files(folder)
    png = bytearray((folder / "good.png").read_bytes())
    jpg = (folder / "good.jpg").read_bytes()
    start = png.index(b"IDAT") + 40
    png[start] ^= 255
    flipped = bytearray(jpg)
    flipped[400 : len(jpg) : 97] = b"\xff" * len(flipped[400 : len(jpg) : 97])
    gif = io.BytesIO()
    Image.fromarray(picture()).quantize(64).save(gif, format="GIF")
    contents = {
        "bad_crc.png": (bytes(png), "damaged"),
        "flipped_bytes.jpg": (bytes(flipped), "damaged"),
        "half.gif": (gif.getvalue()[: len(gif.getvalue()) // 2], "truncated"),
        "header.jpg": (jpg[:64], "Truncated"),
        "almost_whole.jpg": (jpg[:-2], "truncated"),
        "nul_bytes.jpg": (bytes(4096), "not an image"),
        "error_page.png": (b"<html><body>404 Not Found</body></html>", "not an image"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "a_directory.jpg").mkdir(exist_ok=True)
    reasons |= {name: reason for name, (_, reason) in contents.items()}
    return reasons | {"a_directory.jpg": "directory", "missing.jpg": "No such file"}
